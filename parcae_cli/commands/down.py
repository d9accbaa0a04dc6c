"""`parcae down`: end jobs and everything they rented, again and again until nothing is left."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parcae_cli.clouds import LISTED, RENTED
from parcae_cli.errors import MayBeRunning, UsageError
from parcae_cli.home import parcae_home

if TYPE_CHECKING:
    from runtime.control.job.journal import JobRecord, Journal

# A launcher ends its fleet within 10 s; one that does not is killed, and its fleet swept after it.
STOP_TIMEOUT_S = 20.0
# EC2 takes its time to call an instance terminated.
RENTED_STOP_TIMEOUT_S = 600.0
KILL_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Ended:
    """What became of one job: its state now, what was killed after it, what cannot be proven to be gone."""

    job: str
    state: str
    was_running: bool
    killed: tuple[str, ...]
    doubtful: tuple[str, ...]


def down(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Default: the one that runs.")] = None,
    all_jobs: Annotated[bool, typer.Option("--all", help="Every job.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """End JOB and everything it rented. Safe to repeat; exits 5 if something may still be running."""
    from parcae_cli.render.output import print_json, text_console
    from runtime.control.job.journal import Journal

    home = parcae_home()
    if job is not None and all_jobs:
        raise UsageError("down: give JOB or --all, not both")
    ended: list[Ended] = []
    if (home / "journal.db").exists():
        journal = Journal(home)
        ended = [end_job(journal, record) for record in chosen(journal, job, all_jobs)]
        journal.close()
    elif job is not None:
        raise UsageError(f"no job named {job!r}: {home} has no jobs")
    doubtful = [what for one in ended for what in one.doubtful]
    found = [one for one in ended if one.was_running or one.killed or one.doubtful]
    if as_json:
        print_json(
            {
                "jobs": [asdict(one) for one in ended],
                "nothing_running": not found,
                "may_be_running": doubtful,
            }
        )
    else:
        console = text_console()
        for one in found:
            swept = f"; killed what was left: {', '.join(one.killed)}" if one.killed else ""
            console.print(f"job [bold]{one.job}[/] is down ({one.state}{swept})", soft_wrap=True)
        if not found:
            console.print("nothing is running")
    if doubtful:
        raise MayBeRunning(
            f"may still be running: {', '.join(doubtful)}", "Run parcae down again, or look at these by hand"
        )


def chosen(journal: Journal, job: str | None, all_jobs: bool) -> list[JobRecord]:
    """The jobs to end: the named one, all, or the one that has not ended.

    Raises:
        UsageError: there is no such job, or several go on and none was named.
    """
    records = journal.jobs()
    if job is not None:
        named = [record for record in records if record.name == job]
        if not named:
            raise UsageError(f"no job named {job!r} in {journal.home}", "See: parcae status")
        return named
    going_on = [record for record in records if not record.state.ended]
    if not all_jobs and len(going_on) > 1:
        names = ", ".join(record.name for record in going_on)
        raise UsageError(f"several jobs go on: {names}", "Name one, or use --all")
    # Ended jobs take part: a crash may have left processes behind a state that says otherwise.
    return records


def end_job(journal: Journal, record: JobRecord) -> Ended:
    """Stop a job's launcher, then sweep what it left."""
    from runtime.control.job.journal import JobState

    was_running = not record.state.ended
    doubtful: list[str] = []
    if record.launcher_alive and was_running and record.pid != os.getpid() and not _stop(record):
        doubtful.append(f"launcher of {record.name} (process {record.pid})")
    killed, left = _sweep(journal.job_folder(record.name))
    if record.at_anchor and not doubtful:
        ended, unclear = _end_at_anchor(journal, record)
        killed, left = [*killed, *ended], [*left, *unclear]
    cloud = str(record.spec.get("cloud"))
    if cloud in (*LISTED, *RENTED) and not doubtful:
        from runtime.control.providers import cloud_module

        ended, unclear = cloud_module(cloud).sweep_job(journal, record)
        killed, left = [*killed, *ended], [*left, *unclear]
    doubtful += [f"{record.name}: {what}" for what in left]
    if not doubtful:
        _close(journal, record.name)
        if not journal.job(record.name).state.ended:
            journal.set_job_state(record.name, JobState.INTERRUPTED)
            journal.event(record.name, time.time(), "ended", "ended by parcae down")
    state = str(journal.job(record.name).state)
    return Ended(record.name, state, was_running, tuple(killed), tuple(doubtful))


def _stop(record: JobRecord) -> bool:
    """Ask the launcher to stop, and kill it if it does not. True when it is gone."""
    patience_s = RENTED_STOP_TIMEOUT_S if record.spec.get("cloud") in RENTED else STOP_TIMEOUT_S
    for number, timeout_s in ((signal.SIGTERM, patience_s), (signal.SIGKILL, KILL_TIMEOUT_S)):
        try:
            os.kill(record.pid, number)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if not record.launcher_alive:
                return True
            time.sleep(0.02)
    return False


def _sweep(folder: Path) -> tuple[list[str], list[str]]:
    """Kill the job's recorded processes that still run: those killed, and those that may have survived."""
    if not folder.is_dir():
        return [], []
    from cloud.local.sweep import sweep

    killed, doubtful = (
        [f"{what.role} {what.pid} of {what.node}" for what in found] for found in sweep(folder)
    )
    return killed, doubtful


def _end_at_anchor(journal: Journal, record: JobRecord) -> tuple[list[str], list[str]]:
    """Have the job's anchor end it, and end the anchor; one that does not answer is ended all the same."""
    from cloud.provider import CloudError
    from parcae_cli.anchored import end_at_anchor, give_back

    cloud = str(record.spec["cloud"])
    why = end_at_anchor(journal, record.name, cloud)
    if why:
        journal.event(record.name, time.time(), "trouble", "the anchor could not end the job by itself", why)
    try:
        return give_back(journal, record.name, cloud), []
    except CloudError as error:
        return [], [str(error)]


def _close(journal: Journal, job: str) -> None:
    """Record the end of the job's instances: the sweep has just proven it."""
    from dataclasses import replace

    from cloud.types import InstanceState

    for row in journal.instances(job, live_only=True):
        journal.put_instance(job, replace(row.instance, state=InstanceState.TERMINATED), row.pgids)
