"""What the anchor tells of its job: all that is new since the last time. Runs on the anchor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.control.job.journal import Journal, UnknownJobError

# What went wrong before the job was in the journal, or at its very end: written by whoever runs it.
PROBLEM = "problem.json"


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
        data = path.read_bytes()
        name = str(path.relative_to(folder))
        size, digest = have.get("files", {}).get(name, (0, ""))
        start = size if digest and digest_of(data[:size]) == digest and size <= len(data) else 0
        if start < len(data) or size > len(data):
            told["files"][name] = [start, data[start:].decode(errors="replace")]
    return told


def digest_of(data: bytes) -> str:
    """Enough of a SHA-256 to know content again."""
    return hashlib.sha256(data).hexdigest()[:32]


def _files(folder: Path, logs: bool) -> Iterator[Path]:
    for name in ("metrics.jsonl", "migrations.jsonl"):
        if (folder / name).exists():
            yield folder / name
    if logs:
        yield from sorted((folder / "logs").glob("*.log"))
