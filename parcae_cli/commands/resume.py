"""`parcae resume`: go on with a job whose launcher was killed, or that was ended before its last step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from parcae_cli.errors import UsageError
from parcae_cli.home import parcae_home


def resume(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Default: the one without a launcher.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="USD", help="A new limit for all that the job spends, in USD.")
    ] = None,
    max_hours: Annotated[
        float | None, typer.Option(metavar="H", help="A new limit for how long it runs, the past included.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it goes on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Go on with JOB where its launcher left it: living nodes are taken over with the state that they hold.

    Where none is left it goes on from its last checkpoint (--checkpoint). No step is lost or trained twice.
    """
    from parcae_cli.commands.launch import finish
    from parcae_cli.render.progress import shown_progress
    from runtime.control.job.launch import resume as go_on

    home = parcae_home()
    name = chosen(job)
    limits: dict[str, Any] = {"budget_usd": budget, "max_hours": max_hours}
    changes = {key: value for key, value in limits.items() if value is not None}
    if bad := [value for value in changes.values() if not 0 < value < float("inf")]:
        raise UsageError(f"--budget and --max-hours: {bad[0]:g} must be above 0")
    if detach:
        from parcae_cli.detach import run_detached

        given = [f"--{key}={value}" for key, value in (("budget", budget), ("max-hours", max_hours)) if value]
        run_detached(home, name, ["resume", name, *given], as_json)
        return
    with shown_progress(home, name):
        if at_anchor(home, name):
            from parcae_cli.anchored import resume_at_anchor

            result = resume_at_anchor(home, name, changes)
        else:
            result = go_on(home, name, **changes)
    finish(result, as_json)


def at_anchor(home: Path, name: str) -> bool:
    """Whether the job's launcher is a rented machine's."""
    from runtime.control.job.journal import Journal

    journal = Journal(home)
    try:
        return journal.job(name).at_anchor
    finally:
        journal.close()


def chosen(job: str | None) -> str:
    """The job to go on with, if it can be.

    Raises:
        UsageError: there is none, or several and none was named.
        UnknownJobError, NotResumableError: the named one is not there, or cannot go on.
    """
    from parcae_cli.anchored import waits_to_be_fetched
    from runtime.control.job.journal import Journal
    from runtime.control.job.past import resumable

    home = parcae_home()
    if not (home / "journal.db").exists():
        raise UsageError(f"no job to resume: {home} has no jobs")
    journal = Journal(home)
    try:
        if job is not None:
            if waits_to_be_fetched(journal, journal.job(job)):
                return job
            return resumable(journal, job).name
        going_on = [record for record in journal.jobs() if not record.state.ended]
        left = [record.name for record in going_on if not record.launcher_alive]
    finally:
        journal.close()
    if len(left) != 1:
        what = f"several jobs have no launcher: {', '.join(left)}" if left else "no job has lost its launcher"
        raise UsageError(f"resume: {what}", "Name one: parcae resume JOB")
    return left[0]
