"""The journal: what a job asked of the cloud, what it holds and what happened, in SQLite (WAL).

It is written before the cloud is called, so that a crash at any point leaves a record of what may be running.
Any process may read it at any time: `parcae status` and `parcae down` know a job by its journal and files.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from threading import RLock
from typing import Any

from cloud.processes import start_ticks
from cloud.types import Instance, InstanceState, Pool
from runtime.control.job.capacity_table import SCHEMA, CapacityTable

# Writers queue for the one write lock; two hundred at once on a busy two-core machine need well under this.
BUSY_TIMEOUT_S = 30.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
  name TEXT PRIMARY KEY, state TEXT NOT NULL, spec_json TEXT NOT NULL,
  pid INTEGER NOT NULL, pid_start INTEGER, created_s REAL NOT NULL, ended_s REAL, result_json TEXT);
CREATE TABLE IF NOT EXISTS intents (
  token TEXT PRIMARY KEY, job TEXT NOT NULL, call TEXT NOT NULL, count INTEGER NOT NULL,
  created_s REAL NOT NULL, outcome TEXT);
CREATE TABLE IF NOT EXISTS instances (
  job TEXT NOT NULL, name TEXT NOT NULL, id TEXT NOT NULL, token TEXT NOT NULL, state TEXT NOT NULL,
  pool_json TEXT NOT NULL, pgids_json TEXT NOT NULL, launched_s REAL NOT NULL, updated_s REAL NOT NULL,
  PRIMARY KEY (job, name));
CREATE TABLE IF NOT EXISTS events (
  id INTEGER PRIMARY KEY, job TEXT NOT NULL, time_s REAL NOT NULL, kind TEXT NOT NULL, text TEXT NOT NULL,
  why TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_of_job ON events (job, id);
CREATE TABLE IF NOT EXISTS generations (job TEXT PRIMARY KEY, highest INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (job TEXT PRIMARY KEY, json TEXT NOT NULL, updated_s REAL NOT NULL);
"""


class JobState(StrEnum):
    """Where a job is in its life. The last three are final."""

    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"  # too few nodes for the smallest layout
    STOPPING = "stopping"
    DONE = "done"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def ended(self) -> bool:
        """Whether the job will never run again under this record."""
        return self in (JobState.DONE, JobState.FAILED, JobState.INTERRUPTED)


class JournalError(Exception):
    """The journal cannot be used; the message names its file and what to do."""


class JobExistsError(Exception):
    """A job of this name is already in the journal."""


class UnknownJobError(Exception):
    """The journal has no job of this name."""


@dataclass(frozen=True)
class JobRecord:
    """One job. Times are Unix seconds; `pid_start` is the launcher's start time in clock ticks since boot."""

    name: str
    state: JobState
    spec: Mapping[str, Any]
    pid: int
    pid_start: int | None
    created_s: float
    ended_s: float | None
    result: Mapping[str, Any] | None

    @property
    def launcher_alive(self) -> bool:
        """Whether the very process that launched the job still runs; a reused pid does not count."""
        return self.pid_start is not None and start_ticks(self.pid) == self.pid_start

    @property
    def at_anchor(self) -> bool:
        """Whether the job lives on a rented machine: the one place that decides it."""
        return self.spec.get("anchor") == "cloud"


@dataclass(frozen=True)
class InstanceRecord:
    """One instance as last written, with the process groups that are its own (local nodes only)."""

    instance: Instance
    pgids: tuple[int, ...]
    updated_s: float


@dataclass(frozen=True)
class IntentRecord:
    """A cloud call that was about to be made. `outcome` None: nobody knows whether it happened."""

    token: str
    job: str
    call: str
    count: int
    created_s: float
    outcome: str | None


@dataclass(frozen=True)
class EventRecord:
    """Something that happened to a job, in words, with the reason where there is one."""

    time_s: float
    kind: str
    text: str
    why: str


def check_job_name(name: str) -> str:
    """The name itself, if it may name a folder and a tag.

    Raises:
        ValueError: it may not; the message says what a name looks like.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot name a job: use up to 63 letters, digits, dots, dashes and underscores"
        )
    return name


class Journal(CapacityTable):
    """One open journal. Safe to share between threads; other processes may write the same file meanwhile."""

    def __init__(self, home: Path) -> None:
        """Open `home`/journal.db, making both where they are missing.

        Raises:
            JournalError: the folder cannot be written, or the file is no journal.
        """
        self.home = home
        self.path = home / "journal.db"
        self._lock = RLock()
        try:
            home.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
            self._prepare()
        except (OSError, sqlite3.Error) as error:
            raise JournalError(f"{self.path}: {error}. Choose another folder with PARCAE_HOME.") from error

    def _prepare(self) -> None:
        """Switch to WAL and make the tables; several processes may do so at once on a new file."""
        deadline_s = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                # Going over to WAL needs the file for itself and does not wait for the busy timeout.
                self._db.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline_s:
                    raise
                time.sleep(0.01)
        # In WAL, NORMAL survives the death of any process; only a power cut may lose the last transactions.
        self._db.execute("PRAGMA synchronous = NORMAL")
        with self._write() as db:
            for statement in (_SCHEMA + SCHEMA).split(";"):
                db.execute(statement)

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One short transaction that holds the write lock from its start, so that it is never redone."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # ---- jobs -------------------------------------------------------------------------------------------

    def job_folder(self, name: str) -> Path:
        """Where the job's files are: metrics.jsonl, events.jsonl, logs/."""
        return self.home / "jobs" / check_job_name(name)

    def anchor_folder(self, name: str) -> Path:
        """What is known of the rented machine on which the job lives."""
        return self.job_folder(name) / "anchor"

    def create_job(self, name: str, spec: Mapping[str, Any], pid: int) -> None:
        """Record a new job, started by process `pid`, and make its folder.

        Raises:
            JobExistsError: there is or was a job of this name.
            ValueError: the name cannot be a job's.
        """
        folder = self.job_folder(name)
        record = (name, JobState.STARTING, json.dumps(spec), pid, start_ticks(pid), time.time())
        try:
            with self._write() as db:
                db.execute(
                    "INSERT INTO jobs (name, state, spec_json, pid, pid_start, created_s)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    record,
                )
        except sqlite3.IntegrityError:
            raise JobExistsError(f"there is already a job named {name!r} in {self.home}") from None
        (folder / "logs").mkdir(parents=True, exist_ok=True)

    def set_job_state(
        self, name: str, state: JobState | str, result: Mapping[str, Any] | None = None
    ) -> None:
        """Record where a job is, and with a final state its result.

        Raises:
            UnknownJobError: there is no such job.
        """
        state = JobState(state)
        with self._write() as db:
            done = db.execute(
                "UPDATE jobs SET state = ?, ended_s = CASE WHEN ? THEN COALESCE(ended_s, ?) END,"
                " result_json = COALESCE(?, result_json) WHERE name = ?",
                (state, state.ended, time.time(), None if result is None else json.dumps(result), name),
            )
            if done.rowcount == 0:
                raise UnknownJobError(f"no job named {name!r} in {self.home}")

    def take_over(self, record: JobRecord, pid: int, spec: Mapping[str, Any]) -> bool:
        """Make process `pid` the launcher of a job whose own has ended; False: another one was quicker."""
        with self._write() as db:
            done = db.execute(
                "UPDATE jobs SET state = ?, pid = ?, pid_start = ?, spec_json = ?, ended_s = NULL,"
                " result_json = NULL WHERE name = ? AND pid = ? AND pid_start IS ?",
                (JobState.STARTING, pid, start_ticks(pid), json.dumps(spec),
                 record.name, record.pid, record.pid_start),
            )  # fmt: skip
        return done.rowcount == 1

    def begin_generation(self, job: str, number: int) -> None:
        """Record that workers are about to hear of a generation of this number."""
        with self._write() as db:
            db.execute("INSERT OR REPLACE INTO generations VALUES (?, ?)", (job, number))

    def highest_generation(self, job: str) -> int:
        """The highest number that any worker can have heard of; 0 before the first."""
        rows = self._rows("SELECT highest FROM generations WHERE job = ?", job)
        return int(rows[0]["highest"]) if rows else 0

    def jobs(self) -> list[JobRecord]:
        """Every job, the oldest first."""
        return [_job(row) for row in self._rows("SELECT * FROM jobs ORDER BY created_s, rowid")]

    def job(self, name: str) -> JobRecord:
        """One job.

        Raises:
            UnknownJobError: there is none of this name.
        """
        rows = self._rows("SELECT * FROM jobs WHERE name = ?", name)
        if not rows:
            raise UnknownJobError(f"no job named {name!r} in {self.home}")
        return _job(rows[0])

    # ---- the cloud --------------------------------------------------------------------------------------

    def intent(self, token: str, job: str, call: str, count: int) -> None:
        """Write down a cloud call before it is made. The same token again is the same intent."""
        with self._write() as db:
            db.execute(
                "INSERT OR IGNORE INTO intents (token, job, call, count, created_s) VALUES (?, ?, ?, ?, ?)",
                (token, job, call, count, time.time()),
            )

    def outcome(self, token: str, text: str) -> None:
        """Write down what became of an intent."""
        with self._write() as db:
            db.execute("UPDATE intents SET outcome = ? WHERE token = ?", (text, token))

    def open_intents(self, job: str | None = None) -> list[IntentRecord]:
        """The calls whose outcome nobody recorded: they may have happened."""
        rows = self._rows(
            "SELECT * FROM intents WHERE outcome IS NULL AND (? IS NULL OR job = ?) ORDER BY created_s",
            job,
            job,
        )
        return [IntentRecord(*row) for row in rows]

    def put_instance(self, job: str, instance: Instance, pgids: Sequence[int] = ()) -> None:
        """Record an instance as it is now; `pgids` are the process groups of a local node."""
        pool = json.dumps(asdict(instance.pool))
        with self._write() as db:
            db.execute(
                "INSERT OR REPLACE INTO instances VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (job, instance.name, instance.id, instance.token, instance.state, pool,
                 json.dumps(list(pgids)), instance.launched_s, time.time()),
            )  # fmt: skip

    def instances(self, job: str | None = None, live_only: bool = False) -> list[InstanceRecord]:
        """The instances of one job, or of all; with `live_only` those that may still be running."""
        rows = self._rows(
            "SELECT * FROM instances WHERE (? IS NULL OR job = ?) AND NOT (? AND state = ?)"
            " ORDER BY job, launched_s, name",
            job, job, live_only, InstanceState.TERMINATED,
        )  # fmt: skip
        return [_instance(row) for row in rows]

    # ---- what happened, and what is ---------------------------------------------------------------------

    def event(self, job: str, time_s: float, kind: str, text: str, why: str = "") -> None:
        """Record an event, in the journal and as a line of the job's events.jsonl."""
        line = json.dumps({"time_s": time_s, "kind": kind, "text": text, "why": why}, ensure_ascii=False)
        with self._write() as db:
            db.execute(
                "INSERT INTO events (job, time_s, kind, text, why) VALUES (?, ?, ?, ?, ?)",
                (job, time_s, kind, text, why),
            )
        folder = self.job_folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")  # one write in append mode: lines of several processes do not mix

    def events(self, job: str, last: int = 20) -> list[EventRecord]:
        """The job's last events, the oldest first."""
        rows = self._rows(
            "SELECT time_s, kind, text, why FROM events WHERE job = ? ORDER BY id DESC LIMIT ?", job, last
        )
        return [EventRecord(*row) for row in reversed(rows)]

    def snapshot(self, job: str, snapshot: Mapping[str, Any]) -> None:
        """Replace the job's picture of itself: what `parcae status` shows."""
        with self._write() as db:
            db.execute(
                "INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?)", (job, json.dumps(snapshot), time.time())
            )

    def read_snapshot(self, job: str) -> dict[str, Any] | None:
        """The job's last picture of itself with its age's `updated_s`; None before the first."""
        rows = self._rows("SELECT json, updated_s FROM snapshots WHERE job = ?", job)
        if not rows:
            return None
        picture: dict[str, Any] = json.loads(rows[0]["json"])
        return {"updated_s": rows[0]["updated_s"], **picture}

    def close(self) -> None:
        """Close the file. Closing twice is no error."""
        with self._lock:
            self._db.close()


def _job(row: sqlite3.Row) -> JobRecord:
    return JobRecord(
        name=row["name"],
        state=JobState(row["state"]),
        spec=json.loads(row["spec_json"]),
        pid=row["pid"],
        pid_start=row["pid_start"],
        created_s=row["created_s"],
        ended_s=row["ended_s"],
        result=None if row["result_json"] is None else json.loads(row["result_json"]),
    )


def _instance(row: sqlite3.Row) -> InstanceRecord:
    instance = Instance(
        id=row["id"],
        name=row["name"],
        job=row["job"],
        token=row["token"],
        pool=Pool(**json.loads(row["pool_json"])),
        state=InstanceState(row["state"]),
        launched_s=row["launched_s"],
    )
    return InstanceRecord(instance, tuple(json.loads(row["pgids_json"])), row["updated_s"])
