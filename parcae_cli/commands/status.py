"""`parcae status`: a job as its journal and files tell it, live or once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from parcae_cli.errors import UsageError
from parcae_cli.home import parcae_home

REFRESH_S = 0.25


def status(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Default: the newest job.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Print once; do not follow.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Save the picture as SVG.", hidden=True)] = None,
    width: Annotated[int, typer.Option(min=40, hidden=True, help="Columns of the SVG.")] = 120,
) -> None:
    """Show JOB: its layout, fleet, loss, cost, and what happened last.

    Follows a running job until it ends; Ctrl-C leaves the view, and the job goes on.
    """
    from parcae_cli.anchored import refresh
    from parcae_cli.job_status import StatusReader, newest_job
    from parcae_cli.render.output import print_json, text_console
    from runtime.control.job.journal import Journal

    home = parcae_home()
    console = text_console()
    # Only read: a status must not create the folder it looks for.
    journal = Journal(home) if (home / "journal.db").exists() else None
    name = job or (newest_job(journal) if journal else None)
    if journal is None or name is None:
        if job is not None:
            raise UsageError(f"no job named {job!r}: {home} has no jobs", "Start one: parcae launch gpt-tiny")
        if as_json:
            print_json({"job": None, "state": None})
        else:
            console.print(f"No jobs yet in {home}.  Start one: parcae launch gpt-tiny", soft_wrap=True)
        return
    known = [record.name for record in journal.jobs()]
    if name not in known:
        raise UsageError(f"no job named {name!r} in {home}; there are {', '.join(known[-8:])}")
    refresh(journal, name)
    reader = StatusReader(journal, name)
    from parcae_cli.render.status import status_view

    if as_json:
        print_json(reader.read().as_json())
    elif svg is not None:
        save_svg(reader, svg, width)
    elif once or not console.is_terminal:
        console.print(status_view(reader.read(), console.width))
    else:
        follow(reader, lambda: refresh(journal, name))
    journal.close()


def follow(reader: object, refreshed: Callable[[], None]) -> None:
    """Draw the job again and again on a screen of its own, until it ends or the user leaves."""
    from rich.live import Live

    from parcae_cli.job_status import StatusReader
    from parcae_cli.render.output import text_console
    from parcae_cli.render.status import status_view

    assert isinstance(reader, StatusReader)
    console = text_console()
    now = reader.read()
    if not now.ended:
        at_anchor = now.spec.get("anchor") == "cloud"  # which somebody has to ask
        try:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                while not now.ended:
                    live.update(status_view(now, console.width, console.height), refresh=True)
                    time.sleep(REFRESH_S)
                    if at_anchor:
                        refreshed()
                    now = reader.read()
        except KeyboardInterrupt:
            now = reader.read()
    console.print(status_view(now, console.width))


def save_svg(reader: object, path: Path, width: int) -> None:
    """Write the picture to an SVG file."""
    from rich.console import Console

    from parcae_cli.job_status import StatusReader
    from parcae_cli.render.status import status_view

    assert isinstance(reader, StatusReader)
    with Path(os.devnull).open("w") as nowhere:
        console = Console(
            record=True, width=width, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        console.print(status_view(reader.read(), width))
        console.save_svg(str(path), title="parcae status")
