"""Earlier layouts of the queue, brought to today's one step at a time. Its version is SQLite's `user_version`, and in
Postgres the table `layout`.

A step that was released is never changed. A new one goes to the end, and is SQL that both understand (Postgres began
with layout 3); `tests/server_states` gets a dump of the layout that it starts from.
"""

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, inspect

from lora_drift.pipelines.quantize import Quantization


def _base_of_each_model(connection: Connection) -> None:
    """1 -> 2: what has to be loaded, which is more than the model since bases can be quantised."""
    _run(connection, "ALTER TABLE requests ADD COLUMN base VARCHAR NOT NULL DEFAULT ''",
         "CREATE INDEX IF NOT EXISTS ix_requests_finished_at ON requests (finished_at)")  # fmt: skip
    connection.exec_driver_sql("UPDATE requests SET base = model || ' ' || ?", (str(Quantization()),))


def _clock_and_owners(connection: Connection) -> None:
    """2 -> 3: the last moment at which the server ran; who renders a request, and until when he has it."""
    _run(connection, "CREATE TABLE clock (id INTEGER NOT NULL PRIMARY KEY, seen FLOAT NOT NULL)",
         "ALTER TABLE requests ADD COLUMN owner VARCHAR",
         "ALTER TABLE requests ADD COLUMN lease FLOAT")  # fmt: skip


STEPS: Sequence[Callable[[Connection], None]] = (_base_of_each_model, _clock_and_owners)
NEWEST = 1 + len(STEPS)


class TooNew(Exception):
    """The queue is of a later release."""


def migrate(connection: Connection) -> bool:
    """Bring what is open to the newest layout; False if it is empty, and is to be laid out. In a transaction of the
    caller's.

    Raises:
        TooNew: this release does not know its layout.
    """
    version = _version(connection)
    if version > NEWEST:
        raise TooNew(f"layout {version}, and this release knows those up to {NEWEST}")
    if version == 0:  # new, or of the two releases that wrote no number
        here = inspect(connection)
        if not here.has_table("requests"):
            return False
        columns = {column["name"] for column in here.get_columns("requests")}
        version = 2 if "base" in columns else 1
    for step in STEPS[version - 1 :]:
        step(connection)
    mark(connection)
    return True


def mark(connection: Connection) -> None:
    """Note that the layout is the newest."""
    if connection.dialect.name == "sqlite":
        return _run(connection, f"PRAGMA user_version = {NEWEST}")
    _run(connection, "CREATE TABLE IF NOT EXISTS layout (version INTEGER NOT NULL)", "DELETE FROM layout",
         f"INSERT INTO layout VALUES ({NEWEST})")  # fmt: skip


def _version(connection: Connection) -> int:
    """0: none is written there."""
    if connection.dialect.name == "sqlite":
        return int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if not inspect(connection).has_table("layout"):
        return 0
    return int(connection.exec_driver_sql("SELECT version FROM layout").scalar_one())


def _run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)
