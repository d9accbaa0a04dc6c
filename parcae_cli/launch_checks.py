"""What `parcae launch` refuses before anything starts: options that do not fit each other or name nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parcae_cli.clouds import ANCHORED, CLOUDS, HERE, LISTED, RENTED
from parcae_cli.errors import UsageError

if TYPE_CHECKING:
    from runtime.control.job.job import LaunchRequest


def check_cloud(cloud: str, trace: str | None) -> None:
    """Refuse clouds that are unknown, and a trace where it has no say."""
    if cloud not in CLOUDS:
        raise UsageError(f"--cloud {cloud}: no such cloud", f"There is: {', '.join(CLOUDS)}")
    if trace is not None and cloud not in HERE:
        raise UsageError(
            f"--trace is for --cloud {' or '.join(HERE)}; {cloud} decides by itself which nodes there are"
        )


def check_anchor(
    anchor: str, cloud: str, checkpoint: str | None, start_from: str | None, data: list[str] | None = None
) -> None:
    """Refuse anchors that cannot be, and folders of this machine that an anchor could not reach."""
    if anchor not in ("here", "cloud"):
        raise UsageError(f"--anchor {anchor}: give here or cloud")
    if anchor == "here":
        return
    if cloud not in ANCHORED:
        raise UsageError(
            f"--anchor cloud is for --cloud {' or '.join(ANCHORED)}, not yet for {cloud}",
            "Leave it out: this machine is the anchor then",
        )
    places = [
        ("--checkpoint", checkpoint),
        ("--from", start_from),
        *(("--data", place) for place in data or ()),
    ]
    for option, place in places:
        if place is not None and "://" not in place:
            raise UsageError(
                f"{option} {place}: an anchor in the cloud has no folder of this machine",
                "Give s3://BUCKET/PREFIX",
            )


def check_hosts(cloud: str, hosts: str | None) -> dict[str, str]:
    """The fleet's settings: where the file of hosts is, for the cloud that is made of them.

    Raises:
        UsageError: there is a file and no use for it, or the other way round.
        InventoryError: the file is wrong.
    """
    if (cloud in LISTED) != (hosts is not None):
        raise UsageError(
            "--cloud hosts and --hosts FILE belong together", "Example: --cloud hosts --hosts hosts.toml"
        )
    if hosts is None:
        return {}
    from cloud.hosts.inventory import read_inventory

    path = Path(hosts).expanduser()
    read_inventory(path)
    return {"hosts": str(path.resolve())}


def check_fleet(cloud: str, own: str | None, region: str | None = None) -> dict[str, Any]:
    """The settings of the cloud's fleet: the shipped ones, the user's file and the regions laid over them.

    Raises:
        UsageError: there is a file, or a region, and no use for it.
        InputError: the file is missing, or not TOML.
    """
    if cloud not in RENTED:
        for option, value in (("--fleet", own), ("--region", region)):
            if value is not None:
                raise UsageError(
                    f"{option} is for --cloud {' or '.join(RENTED)}; {cloud} has no such settings"
                )
        return {}
    from parcae_cli.catalogue import load_fleet

    table = load_fleet(cloud, own)
    if region is None:
        return table
    names = [name.strip() for name in region.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"--region {region!r}: give names with commas between them, each once")
    if "regions" in table:
        return table | (
            {"region": names[0], "regions": []} if len(names) == 1 else {"region": "", "regions": names}
        )
    if len(names) > 1:
        raise UsageError(f"--region {region}: {cloud} takes one region")
    return table | {"region": names[0]}


def check_backup(how: str, checkpoint: str | None, start_from: str | None, policy: str) -> None:
    """Refuse ways of keeping a backup that there are not, and checkpoints without the one that they need."""
    from runtime.control.backup.orders import MODES

    if how not in MODES:
        raise UsageError(f"--backup {how}: give {', '.join(MODES[:-1])} or {MODES[-1]}")
    if how != "state" and policy == "checkpoint":
        raise UsageError(
            f"--backup {how}: --policy checkpoint sends states to be written", "Leave out --backup"
        )
    if how == "none" and checkpoint is not None:
        raise UsageError("--backup none: checkpoints are written from the backup", "Leave out one of the two")
    if how == "none" and start_from is not None:
        raise UsageError("--backup none: nodes get the state of --from from the backup", "Leave out --backup")


def warn_of_backup(request: LaunchRequest) -> None:
    """Say so where the backup of a rented job may want more memory than this machine has.

    Beside a plan, not before one: what cannot be planned has one line that says why.
    """
    if request.cloud not in RENTED or request.anchor != "here" or request.backup == "none":
        return
    from runtime.control.providers.rented import backup_bytes
    from runtime.planning.model import parse_model

    needed, here = backup_bytes(request, parse_model(request.template, request.model)), memory_bytes()
    if needed > here:
        print(
            f"parcae: the backup of {request.model} may take {needed / 1e9:.0f} GB of memory here, where "
            f"there are {here / 1e9:.0f}: --anchor cloud rents a machine for it, --backup none does without",
            file=sys.stderr,
        )


def memory_bytes() -> float:
    """Of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def check_model(model: str) -> None:
    """Refuse what is not a good template of a model that can be trained."""
    from parcae_cli.catalogue import load_model

    if load_model(model).gpt is None:
        raise UsageError(f"{model} can be replayed, not trained", "Models that can be: parcae models")


def check_profile(profile: Path | None, cloud: str) -> None:
    """Refuse a profile of this machine's device where a cloud's devices will train."""
    if profile is not None and cloud in RENTED:
        raise UsageError(
            f"--profile {profile}: was measured on a machine's own device, and {cloud} has others",
            "Leave it out: such a job corrects its plans by the steps that it sees",
        )


def check_forecaster(name: str | None) -> None:
    """Refuse a forecaster that there is not."""
    if name is not None:
        from runtime.planning.forecasters import forecaster_named

        forecaster_named(name)


def check_trace(trace: str | None) -> Path | None:
    """The trace's path, if it is a good one.

    Raises:
        UsageError, InputError: it cannot be read, or is no trace.
    """
    if trace is None:
        return None
    path = Path(trace).expanduser()
    if not path.is_file():
        raise UsageError(
            f"--trace {trace}: no such file", "Traces that come with Parcae: parcae trace --help"
        )
    try:
        path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--trace {trace}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--trace {trace}: is not a text file", "Formats: parcae trace --help") from None
    from parcae_cli.replay_inputs import read_trace

    read_trace(path)
    return path.resolve()


def place_of(option: str, named: str | None, must_exist: bool = False) -> str | None:
    """The folder or the object store's URL that an option names, if it names one that can be."""
    if named is None:
        return None
    if not named:
        raise UsageError(f"{option}: is empty", "Give a folder or a URL")
    if "://" in named:
        from runtime.control.backup.checkpoint_target import target_of

        return target_of(named).where
    path = Path(named).expanduser()
    if (path.exists() and not path.is_dir()) or (must_exist and not path.exists()):
        raise UsageError(f"{option} {named}: no such folder")
    return str(path.resolve())


def job_name(name: str | None, model: str, home: Path) -> str:
    """The name that was asked for, if it is free, or a new one after the model.

    Raises:
        UsageError: the name is taken, or cannot be one.
    """
    from runtime.control.job.journal import Journal, check_job_name

    taken: set[str] = set()
    if (home / "journal.db").exists():
        journal = Journal(home)
        taken = {job.name for job in journal.jobs()}
        journal.close()
    if name is None:
        stem = Path(model).stem
        return next(free for k in range(1, len(taken) + 2) if (free := f"{stem}-{k}") not in taken)
    try:
        check_job_name(name)
    except ValueError as error:
        raise UsageError(f"--name: {error}") from None
    if name in taken:
        raise UsageError(f"--name {name}: there is already a job of this name", f"See: parcae status {name}")
    return name
