"""What the anchor tells of its job: all that is new since the last time. Runs on the anchor."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.control.job.journal import Journal, UnknownJobError

# What went wrong before the job was in the journal, or at its very end: written by whoever runs it.
PROBLEM = "problem.json"
_KNOWN_BY_BYTES = 1 << 14


def report(home: Path, job: str, have: Mapping[str, Any]) -> dict[str, Any]:
    """`have` is what the asker has: `events`, a count, `files`, size and digest by name, and `logs`, whether
    the nodes' logs are wanted too.

    A file that goes on from what the asker has comes from there on, any other whole: a rollback cuts lines
    off metrics.jsonl.
    """
    told: dict[str, Any] = {"job": None, "snapshot": None, "events": [], "files": {}, "problem": None}
    folder = home / "jobs" / job
    problem = folder / PROBLEM
    if problem.exists():
        told["problem"] = json.loads(problem.read_text())
    if not (home / "journal.db").exists():
        return told
    journal = Journal(home)
    try:
        record = journal.job(job)
        told["snapshot"] = journal.read_snapshot(job)
    except UnknownJobError:
        return told
    finally:
        journal.close()
    told["job"] = {
        "state": str(record.state),
        "result": record.result,
        "launcher_alive": record.launcher_alive,
    }
    events = folder / "events.jsonl"
    if events.exists():
        lines = events.read_text(encoding="utf-8").splitlines()
        told["events"] = [json.loads(line) for line in lines[int(have.get("events", 0)) :]]
    for path in _files(folder, bool(have.get("logs"))):
        name = str(path.relative_to(folder))
        size, digest = have.get("files", {}).get(name, (0, ""))
        start = size if digest and digest_before(path, size) == digest else 0
        with path.open("rb") as file:
            file.seek(start)
            new = file.read()
        if new or size > start:
            told["files"][name] = [start, new.decode(errors="replace")]
    return told


def digest_before(path: Path, size: int) -> str:
    """Enough to know again what a file was when it had `size` bytes; empty if it has fewer now.

    Its last bytes then are enough: a step that is done again has another time in its line. So a file that
    has grown for weeks is not read whole every second.
    """
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) < size:
            return ""
        file.seek(max(0, size - _KNOWN_BY_BYTES))
        return hashlib.sha256(file.read(min(size, _KNOWN_BY_BYTES))).hexdigest()[:32]


def _files(folder: Path, logs: bool) -> Iterator[Path]:
    for name in ("metrics.jsonl", "migrations.jsonl"):
        if (folder / name).exists():
            yield folder / name
    if logs:
        yield from sorted((folder / "logs").glob("*.log"))
