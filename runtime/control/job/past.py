"""What a job had done before its launcher was killed, read from what it left on the disk.

The line of a step in metrics.jsonl is written before any worker is told that the step is committed: the file
is the job's ledger. A line that is not whole was never acted on.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.private_file import write_private
from cloud.types import Instance, InstanceState
from runtime.control.job.job import LaunchRequest, MigrationRecord
from runtime.control.job.journal import JobRecord, JobState, Journal
from runtime.control.wire import TOKEN_BYTES


class NotResumableError(Exception):
    """There is nothing to go on with; the message says why and what to do."""


def resumable(journal: Journal, name: str) -> JobRecord:
    """The job's record, if its launcher is gone and its last step is not done.

    Raises:
        UnknownJobError: there is no such job.
        NotResumableError: it runs, has reached its end, or was being ended.
    """
    record = journal.job(name)
    if record.launcher_alive and not record.state.ended:
        raise NotResumableError(f"job {name} runs (process {record.pid}): parcae status {name}")
    if record.state is JobState.DONE:
        raise NotResumableError(f"job {name} is done: parcae status {name}")
    if record.state is JobState.STOPPING:
        raise NotResumableError(f"job {name} was being ended when its launcher died: parcae down {name}")
    return record


def job_token(folder: Path) -> bytes:
    """The secret that a job's workers share, kept for whoever goes on with it; made at the first call."""
    path = folder / "token"
    if not path.exists():
        write_private(path, secrets.token_hex(TOKEN_BYTES))
    return bytes.fromhex(path.read_text())


@dataclass(frozen=True)
class Past:
    """`rows` are the lines of metrics.jsonl and `offsets` where each begins; `size` is where the last ends.

    `instances` are all that there ever were, with when they ended (Unix seconds); None: they may live.
    """

    began_s: float
    rows: Sequence[Mapping[str, Any]]
    offsets: Sequence[int]
    size: int
    migrations: Sequence[MigrationRecord]
    instances: Sequence[tuple[Instance, float | None]]
    highest_generation: int
    tokens: Sequence[str]

    @property
    def steps(self) -> int | None:
        """How many steps are committed; None: not even one."""
        return int(self.rows[-1]["step"]) + 1 if self.rows else None

    @property
    def living(self) -> tuple[Instance, ...]:
        """The instances that may live."""
        return tuple(instance for instance, ended_s in self.instances if ended_s is None)


def read_past(journal: Journal, record: JobRecord, request: LaunchRequest) -> Past:
    """The past of a job whose launcher has ended."""
    folder = journal.job_folder(request.name)
    rows, offsets, size = _whole_lines(folder / "metrics.jsonl")
    migrations, _, _ = _whole_lines(folder / "migrations.jsonl")
    kept = [row for row in migrations if not rows or row["step"] <= rows[-1]["step"]]
    instances = [
        (row.instance, row.updated_s if row.instance.state is InstanceState.TERMINATED else None)
        for row in journal.instances(request.name)
    ]
    last = int(rows[-1]["generation"]) if rows else 0
    return Past(
        record.created_s,
        rows,
        offsets,
        size,
        [MigrationRecord.from_json(row) for row in kept],
        instances,
        max(last, journal.highest_generation(request.name)),
        [intent.token for intent in journal.open_intents(request.name)],
    )


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], list[int], int]:
    """The objects of a JSON lines file, where each begins, and where the last whole one ends."""
    rows: list[dict[str, Any]] = []
    offsets: list[int] = []
    size = 0
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            rows.append(json.loads(line))
            offsets.append(size)
            size += len(line)
    return rows, offsets, size
