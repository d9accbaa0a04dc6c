"""`parcae gc`: find what crashed launchers have left at a cloud, and end it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from parcae_cli.clouds import RENTED
from parcae_cli.errors import MayBeRunning
from parcae_cli.home import parcae_home


def gc(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """End what jobs without a living launcher have left at a cloud. Safe to repeat.

    Instances of Parcae that this machine's journal does not know are listed, not ended. Exits 5 if something
    may still be running.
    """
    from cloud.provider import CloudError
    from parcae_cli.render.output import print_json, text_console
    from runtime.control.job.journal import Journal

    home = parcae_home()
    ended: dict[str, list[str]] = {}
    doubts: list[str] = []
    strange: list[dict[str, Any]] = []
    if (home / "journal.db").exists():
        from parcae_cli.anchored import give_back, goes_on_there
        from runtime.control.providers import cloud_module

        journal = Journal(home)
        for cloud in RENTED:
            records = [record for record in journal.jobs() if record.spec.get("cloud") == cloud]
            folders = [journal.job_folder(record.name) / cloud for record in records]
            anchors = [journal.anchor_folder(record.name) for record in records]
            for record, folder in zip(records, folders, strict=True):
                if not record.launcher_alive or record.state.ended:
                    try:
                        if goes_on_there(journal, record):
                            continue
                        if record.at_anchor:
                            ended[record.name] = give_back(journal, record.name, cloud)
                        else:
                            ended[record.name] = cloud_module(cloud).sweep(folder)
                    except (CloudError, MayBeRunning) as error:
                        doubts.append(f"{record.name}: {error}")
            try:
                strange += cloud_module(cloud).foreign_instances([*folders, *anchors]) if records else []
            except CloudError as error:
                doubts.append(str(error))
        journal.close()
    if as_json:
        print_json({"ended": ended, "unknown_here": strange, "may_be_running": doubts})
    else:
        console = text_console()
        for job, names in ended.items():
            if names:
                console.print(f"job [bold]{job}[/]: ended {', '.join(names)}", soft_wrap=True)
        if not any(ended.values()):
            console.print("nothing was left behind")
        for one in strange:
            console.print(
                f"not ours: {one['id']} of job {one['job']} in {one['region']}, since {one['since']}",
                soft_wrap=True,
            )
    if doubts:
        raise MayBeRunning("; ".join(doubts), "Mend that, then run parcae gc again")
