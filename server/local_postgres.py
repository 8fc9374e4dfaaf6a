"""A Postgres of one's own in a temporary folder, reached through a socket in it: for tests and benchmarks."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from types import TracebackType

from lora_drift.server.databases import StoreError

USER = "postgres"


@cache
def binaries() -> Path | None:
    """The folder of Postgres' programs, Debian's too, which are not on the PATH; None where there are none."""
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


class LocalPostgres:
    """`with LocalPostgres() as postgres: Store(postgres.url)`; `postgres.kill()` and `start()` in between."""

    def __init__(self) -> None:
        found = binaries()
        assert found is not None, "apt-get install postgresql"
        self._binaries = found
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root.
        self._user = USER if os.geteuid() == 0 else None
        if self._user is not None:
            user = pwd.getpwnam(USER)
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        subprocess.run(
            [self._binaries / "initdb", "-D", self._folder / "data", "-A", "trust", "-U", USER, "-N", "-E", "UTF8"],
            user=self._user, check=True, capture_output=True, cwd=self._folder,
        )  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        return self.of("postgres")

    def of(self, database: str) -> str:
        """The URL of a database, which `create` made."""
        return f"postgresql://{USER}@/{database}?host={self._folder}"

    def create(self, database: str) -> str:
        """Another, empty database; its URL."""
        subprocess.run([self._binaries / "createdb", "-h", self._folder, "-U", USER, database], check=True)
        return self.of(database)

    def start(self) -> None:
        """Start, and wait until it answers."""
        deadline = time.monotonic() + 60
        while subprocess.run([self._binaries / "pg_isready", "-q", "-h", self._folder]).returncode:
            if time.monotonic() > deadline:
                raise StoreError(f"Postgres did not start: {(self._folder / 'log').read_text()[-2000:]}")
            # Not while a process of one that was killed still holds its memory.
            if self._process is None or self._process.poll() is not None:
                self._process = self._started()
            time.sleep(0.05)

    def _started(self) -> "subprocess.Popen[bytes]":
        # No network, as many connections as a few workers and a server take, and every commit on the disk.
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._binaries / "postgres", "-D", self._folder / "data", "-k", self._folder, "-h", "",
                 "-c", "max_connections=200", "-c", "shared_buffers=32MB"],
                user=self._user, stdout=log, stderr=log, cwd=self._folder,
            )  # fmt: skip

    def kill(self) -> None:
        """End it in the middle of everything. Its other processes end when they notice."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it, and remove what it kept."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None
        shutil.rmtree(self._folder)

    def __enter__(self) -> "LocalPostgres":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
