"""Where the queue lies: a file of SQLite's, which one process owns, or a Postgres that processes of many hosts share.

`Store` has the same SQL for both; here is what they do not have in common.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from sqlalchemy import Connection, Engine, MetaData, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError
from sqlalchemy.orm import Session

from lora_drift.server.migrations import TooNew, mark, migrate


class StoreError(Exception):
    """The queue cannot be used; says why, and what to do."""


Told = Callable[[dict[str, Any]], None]
"""Is given what another process said: `event` (queued, cancel, changed, progress, or missed: anything may have
happened), the request's `id`, and the fields of its progress."""


class Database(Protocol):
    engine: Engine

    def open(self, metadata: MetaData) -> None:
        """Lay it out, or bring it from an earlier layout to today's; StoreError if that cannot be."""

    def turn(self) -> AbstractContextManager[object]:
        """What a writer holds."""

    def claiming(self, session: Session) -> None:
        """From here to the transaction's end nobody else claims: the order is everybody's."""

    def tell(self, session: Session, event: str, request_id: str, **more: Any) -> None:
        """Let other processes know, once the transaction has ended well."""

    def scrub(self) -> bool:
        """Drop what was forgotten from the log of writes too; False if it was not possible now."""

    def now(self) -> float:
        """Seconds since 1970 by the clock that all who share the queue go by."""


def database_of(where: Path | str, synchronous: Literal["NORMAL", "FULL"]) -> Database:
    """The file, or the database of a `postgresql://` URL.

    Raises:
        StoreError: no such URL, or the library for it is not installed.
    """
    return Sqlite(where, synchronous) if isinstance(where, Path) else Postgres(where)


class Sqlite:
    def __init__(self, path: Path, synchronous: str) -> None:
        self.path = path
        self.engine = create_engine(f"sqlite:///{path}", pool_size=8, hide_parameters=True)
        event.listen(self.engine, "connect", partial(_prepare, synchronous))
        self._lock = threading.RLock()

    def open(self, metadata: MetaData) -> None:
        path = self.path
        aside = f"move {path.name}* out of {path.parent} and start again: outputs and LoRAs stay, requests are gone"
        try:
            with self.engine.begin() as connection:
                damage = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                if damage != "ok":
                    raise StoreError(f"the queue {path} is damaged ({' '.join(str(damage).split())}); {aside}")
                # Or sqlite3 would commit each change of a layout by itself.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                _lay_out(connection, metadata)
        except TooNew as error:
            raise StoreError(f"the queue {path} is of a later release ({error}): update, or {aside}") from error
        except DatabaseError as error:
            if isinstance(error, OperationalError):  # locked, full, not readable
                raise
            raise StoreError(f"the queue {path} is damaged ({error.orig}); {aside}") from error
        path.chmod(0o600)

    def turn(self) -> AbstractContextManager[object]:
        # One writer at a time: SQLite would refuse the second rather than let it wait, once both have read.
        return self._lock

    def claiming(self, session: Session) -> None:
        """Whoever writes is alone anyhow."""

    def tell(self, session: Session, event: str, request_id: str, **more: Any) -> None:
        """There is no other process."""

    def scrub(self) -> bool:
        with self._lock, self.engine.connect() as connection:
            return not connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").scalar()

    def now(self) -> float:
        return time.time()


def _prepare(synchronous: str, connection: Any, _record: Any) -> None:
    # NORMAL: a commit survives the process, though not a power cut (FULL: that, too). secure_delete: forgotten secrets
    # are overwritten.
    for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "secure_delete=ON", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}")


def _lay_out(connection: Connection, metadata: MetaData) -> None:
    if not migrate(connection):
        metadata.create_all(connection)
        mark(connection)


CHANNEL = "lora_drift"
LAYOUT, CLAIMS, SERVER = 7_205_101, 7_205_102, 7_205_103
"""Advisory locks: held while the layout is changed, by who claims, and by the one server for as long as it runs."""
TAKEOVER = 15.0
"""Seconds for which a server that was killed may seem to be connected."""
_PATIENT = {
    "connect_timeout": 10,
    # A host that is gone without a word is noticed within half a minute, here and there.
    "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000,
    "options": "-c lock_timeout=10s -c idle_in_transaction_session_timeout=30s "
               "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=4",
}  # fmt: skip


class Postgres:
    """Any number of processes may use it, and hear of each other through NOTIFY."""

    def __init__(self, url: str) -> None:
        try:
            given = make_url(url)
            if given.get_backend_name() != "postgresql":
                raise StoreError(f"DATABASE_URL: {given.drivername} is not known; give postgresql://USER@HOST/NAME")
            # Before each use it is asked whether it is still there: one that was restarted costs nobody an error.
            self.engine = create_engine(given.set(drivername="postgresql+psycopg"), pool_size=8, max_overflow=16,
                                        pool_pre_ping=True, hide_parameters=True, connect_args=_PATIENT)  # fmt: skip
        except ArgumentError as error:
            raise StoreError("DATABASE_URL: not a URL; give postgresql://USER@HOST/NAME") from error
        except ModuleNotFoundError as error:
            raise StoreError("DATABASE_URL: needs psycopg, which is not installed: "
                             "pip install 'lora-drift[postgres]'") from error  # fmt: skip
        self.shown = f"{given.host or 'localhost'}/{given.database}"

    def open(self, metadata: MetaData) -> None:
        try:
            with self.engine.begin() as connection:
                connection.execute(text(f"SELECT pg_advisory_xact_lock({LAYOUT})"))
                _lay_out(connection, metadata)
        except TooNew as error:
            raise StoreError(f"the queue at {self.shown} is of a later release ({error}): update, or give an empty "
                             "database") from error  # fmt: skip

    def turn(self) -> AbstractContextManager[object]:
        return nullcontext()

    def claiming(self, session: Session) -> None:
        session.execute(text(f"SELECT pg_advisory_xact_lock({CLAIMS})"))

    def tell(self, session: Session, event: str, request_id: str, **more: Any) -> None:
        if event == "progress":  # not worth a wait for the disk
            session.execute(text("SET LOCAL synchronous_commit = off"))
        said = json.dumps({"event": event, "id": request_id, **more})
        session.execute(text("SELECT pg_notify(:channel, :said)"), {"channel": CHANNEL, "said": said})

    def scrub(self) -> bool:
        return True  # its own vacuum does, and its log of writes is its operator's

    def now(self) -> float:
        with self.engine.connect() as connection:
            return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())


class Listener(threading.Thread):
    """Hears what other processes say, and is heard by none. The server's own (`alone`) is the only one of its kind."""

    PAUSE = 1.0

    def __init__(self, database: Postgres, told: Told, *, alone: bool = False) -> None:
        """Connected at once.

        Raises:
            StoreError: there is another server, and this was to be alone.
        """
        super().__init__(name="listener", daemon=True)
        self._database, self._told, self._alone = database, told, alone
        self._ending = threading.Event()
        self.connected = False
        """And alone, if it is to be."""
        deadline = time.monotonic() + TAKEOVER
        while (connection := self._connect()) is None:
            if time.monotonic() > deadline:
                raise StoreError(f"another server uses the database {database.shown}: there can be one")
            time.sleep(0.2)
        self._connection = connection

    def _connect(self) -> Connection | None:
        connection = self._database.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            if self._alone and not connection.scalar(text(f"SELECT pg_try_advisory_lock({SERVER})")):
                connection.close()
                return None
            connection.execute(text(f"LISTEN {CHANNEL}"))
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        self.connected = True
        return connection

    def run(self) -> None:
        import psycopg

        connection: Connection | None = self._connection
        while not self._ending.is_set():
            try:
                if connection is None:
                    connection = self._connect()
                    if connection is None:  # another server took over
                        self._ending.wait(self.PAUSE)
                        continue
                    self._told({"event": "missed"})
                driver: Any = connection.connection.driver_connection
                for said in driver.notifies(timeout=0.5, stop_after=100):
                    self._told(json.loads(said.payload))
            except (psycopg.OperationalError, OperationalError):
                self.connected = False
                if connection is not None:
                    connection.invalidate()
                    connection.close()
                connection = None
                self._ending.wait(self.PAUSE)
        if connection is not None:  # not back into the pool: it would listen, and hold the lock, for ever
            connection.invalidate()
            connection.close()

    def stop(self) -> None:
        self._ending.set()
        self.join()
