"""The queue: requests and their states, which outlive `kill -9`, in a file of SQLite's or in Postgres."""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sqlalchemy import JSON, ColumnElement, Index, delete, exists, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from lora_drift.server.databases import Listener, Postgres, Told, database_of
from lora_drift.server.request_plan import Job, Secrets
from lora_drift.server.schemas import FINISHED, State
from lora_drift.server.times import Clock

LEASE = 120.0
"""Seconds for which a worker has a request that it does not ask for again."""
PATIENCE = 20.0
"""Seconds for which a request waits for the worker that has its base loaded while others have nothing to do."""


class Base(DeclarativeBase):
    pass


class Row(Base):
    """One request."""

    __tablename__ = "requests"

    seq: Mapped[int] = mapped_column(primary_key=True)
    """Order of arrival."""
    id: Mapped[str] = mapped_column(unique=True)
    state: Mapped[State] = mapped_column(index=True)
    model: Mapped[str]
    base: Mapped[str]
    job: Mapped[dict[str, Any]] = mapped_column(JSON)
    secrets: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    ready: Mapped[bool]
    """Its LoRA files are here."""
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    fingerprint: Mapped[str | None]
    """Hash of the body that came with the key."""
    created_at: Mapped[float]
    started_at: Mapped[float | None]
    finished_at: Mapped[float | None] = mapped_column(index=True)
    expires_at: Mapped[float | None]
    """When it fails unless it has started."""
    tries: Mapped[int] = mapped_column(default=0)
    overtaken: Mapped[int] = mapped_column(default=0)
    cancel: Mapped[bool] = mapped_column(default=False)
    error_code: Mapped[str | None]
    error: Mapped[str | None]
    outputs: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON)
    timings: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    webhook_url: Mapped[str | None]
    webhook_tries: Mapped[int] = mapped_column(default=0)
    webhook_due: Mapped[float | None] = mapped_column(index=True)
    owner: Mapped[str | None]
    """The worker that renders it."""
    lease: Mapped[float | None]
    """Until when the owner has it, unless he asks for longer."""

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


class Download(Base):
    """What a URL held when it was last fetched."""

    __tablename__ = "downloads"

    url_sha256: Mapped[str] = mapped_column(primary_key=True)
    """Not the URL: it may carry a signature."""
    etag: Mapped[str]
    sha256: Mapped[str]


class Moment(Base):
    """When the server last ran."""

    __tablename__ = "clock"

    id: Mapped[int] = mapped_column(primary_key=True)
    seen: Mapped[float]


# Postgres would else look for the oldest that waits among all that have finished.
Index("ix_requests_order", Row.state, Row.seq).ddl_if(dialect="postgresql")


class Conflict(Exception):
    """The idempotency key was used before, with another body."""


class New(NamedTuple):
    job: Job
    secrets: Secrets
    idempotency_key: str | None = None
    fingerprint: str | None = None
    ttl: float | None = None
    webhook_url: str | None = None


class Store:
    def __init__(self, where: Path | str, synchronous: Literal["NORMAL", "FULL"] = "NORMAL") -> None:
        """Open the file, or the database of a `postgresql://` URL (where `synchronous` is its own business); lay it
        out, or bring it from an earlier layout to today's.

        Raises:
            StoreError: it is damaged, or of a later release. It is left as it was.
            OperationalError: it cannot be reached, or is locked.
        """
        self._database = database_of(where, synchronous)
        self._engine = self._database.engine
        self._forgotten = threading.Event()
        """Secrets were overwritten; the write-ahead log still holds them."""
        self._database.open(Base.metadata)
        self.clock = Clock(self._last_seen(), self._database.now())
        self.now = self.clock.now

    @property
    def shared(self) -> bool:
        """Others may use it at the same time, and are heard by `listener`."""
        return isinstance(self._database, Postgres)

    def listener(self, told: Told, *, alone: bool = False) -> Listener:
        """What tells of changes that other processes made; to be started. See `Listener`."""
        assert isinstance(self._database, Postgres)
        return Listener(self._database, told, alone=alone)

    def tell_progress(self, request_id: str, progress: dict[str, Any]) -> None:
        """Let who listens know; it is kept nowhere."""
        with self._writing() as session:
            self._database.tell(session, "progress", request_id, **progress)

    def _last_seen(self) -> float:
        with self._reading() as session:
            seen = [
                session.scalar(select(func.max(column))) for column in (Moment.seen, Row.created_at, Row.finished_at)
            ]
        return max((moment for moment in seen if moment is not None), default=0.0)

    def note_time(self) -> None:
        """Note that the server runs."""
        with self._writing() as session:
            session.merge(Moment(id=1, seen=self.now()))

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with self._database.turn(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def scrub(self) -> None:
        """Drop what was forgotten from the write-ahead log too."""
        if not self._forgotten.is_set():
            return
        self._forgotten.clear()
        if not self._database.scrub():
            self._forgotten.set()

    def _finish(self, row: Row, state: State, code: str | None, error: str | None) -> None:
        row.state, row.finished_at, row.error_code, row.error = state, self.now(), code, error
        row.secrets = None
        if row.webhook_url:
            row.webhook_due = row.finished_at
        self._forgotten.set()

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    # ------------------------------------------------------------------------------------------------ for clients

    def add(self, new: New) -> Row:
        """Queue a request, or return the one that came with the same idempotency key.

        Raises:
            Conflict: the key came with another body.
        """
        now = self.now()
        row = Row(
            id=new.job.id,
            state="in_queue",
            model=new.job.model,
            base=new.job.base,
            job=new.job.model_dump(),
            secrets=new.secrets.model_dump(mode="json"),
            ready=not new.secrets.urls,
            idempotency_key=new.idempotency_key,
            fingerprint=new.fingerprint,
            created_at=now,
            expires_at=None if new.ttl is None else now + new.ttl,
            webhook_url=new.webhook_url,
        )
        try:
            with self._writing() as session:
                session.add(row)
                if row.ready:
                    self._database.tell(session, "queued", row.id)
            return row
        except IntegrityError:
            if new.idempotency_key is None:
                raise
        known = self.with_key(new.idempotency_key, new.fingerprint)
        assert known is not None
        return known

    def with_key(self, key: str, fingerprint: str | None) -> Row | None:
        """Raises Conflict when the key came with another body."""
        with self._reading() as session:
            row = session.scalar(select(Row).where(Row.idempotency_key == key))
        if row is not None and row.fingerprint != fingerprint:
            raise Conflict(key)
        return row

    def get(self, request_id: str) -> Row | None:
        with self._reading() as session:
            return session.scalar(select(Row).where(Row.id == request_id))

    def position(self, row: Row) -> int | None:
        """Place in the queue, from 1; None for what is not waiting to be rendered."""
        if row.state != "in_queue" or not row.ready:
            return None
        with self._reading() as session:
            before = select(func.count()).where(Row.state == "in_queue", Row.ready, Row.seq < row.seq)
            return (session.scalar(before) or 0) + 1

    def waiting(self) -> int:
        with self._reading() as session:
            return session.scalar(select(func.count()).where(Row.state == "in_queue")) or 0

    def unfinished(self) -> int:
        """How many are rendered, or could be."""
        work = (Row.state == "in_queue") & Row.ready | (Row.state == "in_progress")
        with self._reading() as session:
            return session.scalar(select(func.count()).where(work)) or 0

    def cancel(self, request_id: str) -> Row | None:
        """Cancel what waits, ask for it where it is rendered. None for what is unknown or has finished."""
        with self._writing() as session:
            row = session.scalar(select(Row).where(Row.id == request_id).with_for_update())
            if row is None or row.finished:
                return None
            if row.state == "in_queue":
                self._finish(row, "canceled", "CANCELED", "canceled before it started")
            else:
                row.cancel = True
            self._database.tell(session, "cancel", row.id)
            return row

    # --------------------------------------------------------------------------------------------- for the renderer

    def claim(
        self, loaded: Collection[str], fairness_bound: int, *, owner: str = "", elsewhere: Collection[str] = ()
    ) -> Row | None:
        """The next request, now in progress: the oldest, or the oldest whose base is loaded, or else the oldest whose
        base no other worker has either, as long as that overtakes nobody for more than the bound's time.

        `elsewhere` are the bases of the other workers. A request for one of them is left to its worker for PATIENCE
        seconds, unless more wait for that base than there are workers who have it. None: nothing to do right now.
        """
        waiting = (Row.state == "in_queue", Row.ready)
        # Who is being canceled is passed over (SQLite has one writer at a time, and leaves that clause out).
        queued = select(Row).where(*waiting).order_by(Row.seq).limit(1).with_for_update(skip_locked=True)
        with self._writing() as session:
            if not session.scalar(select(exists().where(*waiting))):
                return None
            self._database.claiming(session)
            row = session.scalar(queued)
            if row is None:
                return None
            if row.base not in loaded:
                other = session.scalar(queued.where(Row.base.in_(loaded)))
                if other is None and row.base in elsewhere:
                    other = session.scalar(queued.where(Row.base.not_in(elsewhere)))
                    same = select(func.count()).where(*waiting, Row.base == row.base)
                    enough = (session.scalar(same) or 0) <= list(elsewhere).count(row.base)
                    if other is None and enough and self.now() - row.created_at < PATIENCE:
                        return None
                if other is not None:
                    older = (*waiting, Row.seq < other.seq)
                    if not session.scalar(select(exists().where(*older, Row.overtaken >= fairness_bound))):
                        session.execute(update(Row).where(*older).values(overtaken=Row.overtaken + 1))
                        row = other
            row.state, row.started_at, row.tries = "in_progress", row.started_at or self.now(), row.tries + 1
            row.owner, row.lease = owner, self.now() + LEASE
            self._database.tell(session, "changed", row.id)
            return row

    def renew(self, request_id: str, owner: str) -> bool:
        """Keep what one renders; False if it is somebody else's by now, or nobody's."""
        mine = update(Row).where(Row.id == request_id, Row.state == "in_progress", Row.owner == owner)
        with self._writing() as session:
            done: Any = session.execute(mine.values(lease=self.now() + LEASE))
            return bool(done.rowcount)

    def finish(
        self,
        request_id: str,
        state: State,
        *,
        owner: str | None = None,
        code: str | None = None,
        error: str | None = None,
        outputs: list[dict[str, Any]] | None = None,
        timings: dict[str, Any] | None = None,
    ) -> Row | None:
        """Note how a request ended, and forget its secrets. None if it had ended before, or is not the owner's now."""
        with self._writing() as session:
            row = session.scalar(select(Row).where(Row.id == request_id).with_for_update())
            if row is None or row.finished or (owner is not None and row.owner != owner):
                return None
            self._finish(row, state, code, error)
            row.outputs, row.timings = outputs, timings
            self._database.tell(session, "changed", row.id, by=owner)
            return row

    def requeue(self, request_id: str, *, owner: str = "", count_try: bool = True) -> None:
        """Back to its place in the queue, if it is the owner's."""
        self._put_back(owner, count_try, Row.id == request_id)

    def release(self, owner: str) -> None:
        """Back to its place in the queue with all that the owner has, who does not know of it: no try of a request."""
        self._put_back(owner, False)

    def _put_back(self, owner: str, count_try: bool, *which: ColumnElement[bool]) -> None:
        with self._writing() as session:
            mine = (Row.state == "in_progress", Row.owner == owner, *which)
            for row in session.scalars(select(Row).where(*mine).with_for_update()):
                row.state, row.tries = "in_queue", row.tries - (not count_try)
                row.owner = row.lease = None
                self._database.tell(session, "queued", row.id)

    def cancel_wanted(self, request_id: str) -> bool:
        with self._reading() as session:
            return bool(session.scalar(select(Row.cancel).where(Row.id == request_id)))

    def recover(
        self, max_tries: int, *, expired_only: bool = False, living: Collection[str] | None = None
    ) -> list[Row]:
        """What was in flight when the server died (or of which the lease has run out, or of which the owner is none of
        the living) goes back, or fails; returns what failed."""
        failed = []
        lost = select(Row).where(Row.state == "in_progress")
        if expired_only:
            lost = lost.where(Row.lease < self.now())
        if living is not None:
            lost = lost.where(Row.owner.not_in(living))
        with self._writing() as session:
            for row in list(session.scalars(lost.with_for_update())):
                row.owner = row.lease = None
                if row.cancel:
                    self._finish(row, "canceled", "CANCELED", "canceled while the server was restarted")
                elif row.tries >= max_tries:
                    self._finish(
                        row, "failed", "TRIES_EXHAUSTED", f"the server died {row.tries} times while rendering it"
                    )
                    failed.append(row)
                else:
                    row.state = "in_queue"
                self._database.tell(session, "queued" if row.state == "in_queue" else "changed", row.id)
        return failed

    # ------------------------------------------------------------------------------------ downloads, webhooks, time

    def unready(self) -> list[Row]:
        with self._reading() as session:
            return list(session.scalars(select(Row).where(Row.state == "in_queue", Row.ready.is_(False))))

    def make_ready(self, request_id: str, job: Job) -> None:
        with self._writing() as session:
            session.execute(update(Row).where(Row.id == request_id).values(job=job.model_dump(), ready=True))
            self._database.tell(session, "queued", request_id)

    def download(self, url_sha256: str) -> Download | None:
        with self._reading() as session:
            return session.get(Download, url_sha256)

    def note_download(self, url_sha256: str, etag: str, sha256: str) -> None:
        with self._writing() as session:
            session.merge(Download(url_sha256=url_sha256, etag=etag, sha256=sha256))

    def loras_in_use(self) -> set[str]:
        """Hashes of the LoRAs that unfinished requests need."""
        with self._reading() as session:
            jobs = session.scalars(select(Row.job).where(Row.state.in_(("in_queue", "in_progress"))))
            return {lora["sha256"] for job in jobs for lora in job["loras"]}

    def webhooks_due(self) -> list[Row]:
        with self._reading() as session:
            return list(session.scalars(select(Row).where(Row.webhook_due <= self.now()).order_by(Row.webhook_due)))

    def note_webhook(self, request_id: str, tries: int, due: float | None) -> None:
        """`due` None: delivered, or given up; the URL, which may hold a secret, is forgotten."""
        values: dict[str, Any] = {"webhook_tries": tries, "webhook_due": due}
        with self._writing() as session:
            forget = {} if due is not None else {"webhook_url": None}
            session.execute(update(Row).where(Row.id == request_id).values(**values, **forget))
        self._forgotten.set()

    def expire(self) -> list[Row]:
        """Fail what waited longer than its `ttl`."""
        with self._writing() as session:
            waited = select(Row).where(Row.state == "in_queue", Row.expires_at < self.now())
            late = list(session.scalars(waited.with_for_update(skip_locked=True)))
            for row in late:
                self._finish(row, "failed", "EXPIRED", "it had not started when its ttl ended")
        return late

    def finished(self, before: float) -> set[str]:
        """What finished before then, and has no webhook to be delivered."""
        with self._reading() as session:
            found = session.execute(select(Row.id, Row.webhook_due).where(Row.finished_at < before))
            return {request_id for request_id, webhook_due in found if webhook_due is None}

    def remove(self, request_ids: Collection[str]) -> None:
        with self._writing() as session:
            session.execute(delete(Row).where(Row.id.in_(request_ids)))
