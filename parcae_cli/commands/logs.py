"""`parcae logs`: what happened to a job, and what its nodes wrote."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from parcae_cli.errors import UsageError
from parcae_cli.home import parcae_home


def logs(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Default: the newest job.")] = None,
    node: Annotated[str | None, typer.Argument(metavar="[NODE]", help="What this node wrote.")] = None,
    last: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only the last N lines.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show JOB's events with their reasons, or what one of its nodes wrote."""
    from parcae_cli.anchored import refresh
    from parcae_cli.job_status import newest_job
    from parcae_cli.render.output import print_json
    from runtime.control.job.journal import Journal

    home = parcae_home()
    journal = Journal(home) if (home / "journal.db").exists() else None
    name = job or (newest_job(journal) if journal else None)
    if journal is None or name is None or name not in [record.name for record in journal.jobs()]:
        raise UsageError(
            f"no job named {name!r} in {home}" if name else f"no jobs in {home}", "See: parcae status"
        )
    refresh(journal, name, logs=node is not None)
    folder = journal.job_folder(name)
    journal.close()
    if node is not None:
        lines = _node_log(folder, name, node)
        lines = lines[-last:] if last else lines
        if as_json:
            print_json({"job": name, "node": node, "lines": lines})
        else:
            sys.stdout.writelines(line + "\n" for line in lines)
        return
    events = _events(folder / "events.jsonl")
    events = events[-last:] if last else events
    if as_json:
        print_json({"job": name, "events": events, "nodes": _nodes_with_logs(folder)})
    else:
        sys.stdout.writelines(_line(event) for event in events)


def _events(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _line(event: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time_s"]))
    why = f"  ({event['why']})" if event["why"] else ""
    return f"{when}  {event['kind']:<10} {event['text']}{why}\n"


def _nodes_with_logs(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "logs").glob("*.log"))


def _node_log(folder: Path, job: str, node: str) -> list[str]:
    known = _nodes_with_logs(folder)
    if node not in known:
        raise UsageError(f"job {job} has no log of {node!r}; there are {', '.join(known) or 'none'}")
    return (folder / "logs" / f"{node}.log").read_text(encoding="utf-8", errors="replace").splitlines()
