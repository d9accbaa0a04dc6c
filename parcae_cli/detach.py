"""Launching a job that goes on after the command has returned."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from parcae_cli.errors import FailedError, MayBeRunning
from parcae_cli.render.output import print_json, text_console
from runtime.control.job.journal import Journal, UnknownJobError

START_TIMEOUT_S = 60.0


def run_detached(home: Path, job: str, arguments: Sequence[str], as_json: bool) -> None:
    """Run the command in a session of its own, and return when the job is in the journal as its own.

    Raises:
        FailedError: it ended before that; the message is its last line.
        MayBeRunning: it did not start in a minute.
    """
    journal = Journal(home)
    log = journal.job_folder(job) / "logs" / "launch.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    again = [argument for argument in arguments if argument != "--detach"]
    # -P keeps the working folder off sys.path, as it is for the installed command.
    command = [sys.executable, "-P", "-m", "parcae_cli.main", *again]
    with log.open("ab") as output:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline_s = time.monotonic() + START_TIMEOUT_S
    try:
        while not _has_started(journal, job, child.pid):
            if child.poll() is not None:
                lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["no output"]
                raise FailedError(f"job {job} did not start: {lines[-1]}", f"See {log}")
            if time.monotonic() > deadline_s:
                raise MayBeRunning(
                    f"job {job} (process {child.pid}) has not started in {START_TIMEOUT_S:.0f} s",
                    f"See {log}; end it with: parcae down {job}",
                )
            time.sleep(0.05)
    finally:
        journal.close()
    if as_json:
        print_json({"job": job, "state": "starting", "pid": child.pid, "log": str(log)})
    else:
        text_console().print(
            f"job [bold]{job}[/] started.  See: parcae status {job}   End it: parcae down {job}"
        )


def _has_started(journal: Journal, job: str, pid: int) -> bool:
    try:
        return journal.job(job).pid == pid
    except UnknownJobError:
        return False
