"""The local picture of a job that lives at an anchor: its journal entry and files, brought up to date.

Everything that looks at a job reads the local journal and files, wherever the job lives.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.anchor import AnchorRecord
from cloud.private_file import write_private
from runtime.control.anchor.remote import AnchorLostError, ask
from runtime.control.anchor.report import digest_before
from runtime.control.job.journal import JobState, Journal

_STATE = "mirror.json"
# More than this machine can have said of a job since a mirror of it was killed.
_LOCAL_EVENTS = 100


@dataclass(frozen=True)
class Seen:
    """What the anchor said: whether the job's launcher lives there, and what went wrong, if anything did.

    `began` is false while the job is not in the anchor's journal. `problem` has `code` and `line`.
    """

    began: bool
    ended: bool
    launcher_alive: bool
    problem: Mapping[str, Any] | None


def mirror(journal: Journal, job: str, logs: bool = False) -> Seen:
    """Bring the local journal and files up to date with the anchor; the nodes' logs too, if asked for.

    Raises:
        AnchorLostError: it cannot be reached, or was never reached; what is here is as old as it was.
        AnchorRefusedError: it cannot tell.
    """
    folder = journal.anchor_folder(job)
    record = AnchorRecord.read(folder)
    if record is None or not record.sources:
        raise AnchorLostError(f"job {job} has not reached its anchor")
    with _alone(folder):
        state = folder / _STATE
        have: dict[str, Any] = json.loads(state.read_text()) if state.exists() else {"events": 0}
        files = {name: _known(journal.job_folder(job) / name) for name in have.get("files", ())}
        told = ask(record, f"report {job}", {"events": have["events"], "files": files, "logs": logs})
        # Whoever was killed between writing events and counting them has written them.
        here = journal.events(job, len(told["events"]) + _LOCAL_EVENTS) if told["events"] else ()
        written = {(one.time_s, one.kind, one.text, one.why) for one in here}
        for event in told["events"]:
            if (event["time_s"], event["kind"], event["text"], event["why"]) in written:
                continue
            journal.event(job, event["time_s"], event["kind"], event["text"], event["why"])
        for name, (start, text) in told["files"].items():
            _write(journal.job_folder(job), name, start, text)
        names = sorted({*have.get("files", ()), *told["files"]})
        now = {"events": have["events"] + len(told["events"]), "files": names}
        if now != have:  # whole or not at all: this process may be killed at any moment
            write_private(state, json.dumps(now))
        there = told["job"]
        alive = bool(there and there["launcher_alive"])
        if there is not None:
            about = {"id": record.id, "type": record.kind, "zone": record.zone, "launcher_alive": alive}
            about["usd_per_hour"] = record.usd_per_hour
            journal.snapshot(job, {**(told["snapshot"] or {}), "anchor": about})
            journal.set_job_state(job, JobState(there["state"]), there["result"])
    ended = bool(there and JobState(there["state"]).ended)
    return Seen(there is not None, ended, alive, told["problem"])


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time: what came must not be written twice."""
    with (folder / "mirror.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _known(path: Path) -> tuple[int, str]:
    if not path.exists():
        return 0, ""
    size = path.stat().st_size
    return size, digest_before(path, size)


def _write(folder: Path, name: str, start: int, text: str) -> None:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise AnchorLostError(f"the anchor sent a file {name!r}, which is not the job's")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("r+b" if start and path.exists() else "wb") as file:
        file.truncate(start)
        file.seek(start)
        file.write(text.encode())
