"""`parcae ssh`: a shell, or one command, on a node of a running job, by the system's own `ssh`."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from parcae_cli.clouds import HERE
from parcae_cli.errors import FailedError, UsageError
from parcae_cli.home import parcae_home

if TYPE_CHECKING:
    from cloud.types import Instance, OwnSshTarget, SshTarget
    from runtime.control.job.journal import JobRecord, Journal

ANCHOR = "anchor"
_UNREACHABLE = 255  # what ssh itself ends with where it could not connect


class _WithCommand(TyperCommand):
    """Keeps what stands behind `--` apart: it is a command for the node, whatever it looks like."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        cut = args.index("--") if "--" in args else len(args)
        ctx.meta["command"] = args[cut + 1 :]
        return super().parse_args(ctx, args[:cut])


app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command("ssh", cls=_WithCommand, options_metavar="[OPTIONS]", epilog="COMMAND stands behind `--`.")
def ssh(
    context: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="A running job; see `parcae status`.")],
    node: Annotated[
        str | None,
        typer.Argument(metavar="[NODE] [-- COMMAND]", help="Default: the only one; of several a list."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="List the nodes as one JSON object.")] = False,
) -> None:
    """Open a shell on a node of JOB, or run COMMAND there and end with its exit code.

    One word of COMMAND is given to the node's shell as it is, several are quoted. A job that lives at an
    anchor has the node `anchor`. Try: parcae ssh JOB node1 -- nvidia-smi
    """
    command: list[str] = context.meta["command"]
    if as_json and (command or node):
        raise UsageError("--json lists nodes", "Leave out NODE and COMMAND")
    from runtime.control.job.journal import Journal

    home = parcae_home()
    if not (home / "journal.db").exists():
        raise UsageError(f"no job named {job!r}: {home} has no jobs", "See: parcae launch --help")
    journal = Journal(home)
    try:
        record = running_job(journal, job)
        doors = open_doors(journal, record)
        booting = [
            one.instance.name
            for one in ([] if record.at_anchor else journal.instances(job, live_only=True))
            if one.instance.name not in doors
        ]
    finally:
        journal.close()
    if as_json or (node is None and not command and len(doors) != 1):
        _list(job, doors, booting, as_json)
        return
    name = _chosen(job, node, doors, booting)
    raise typer.Exit(go(name, doors[name], command, terminal=record.spec.get("cloud") not in HERE))


def running_job(journal: Journal, name: str) -> JobRecord:
    """The job's record, if it has nodes that can be reached.

    Raises:
        UnknownJobError: there is no such job.
        UsageError: it does not run.
    """
    record = journal.job(name)
    if record.state.ended:
        raise UsageError(
            f"job {name} has ended ({record.state}): its nodes are gone", f"See: parcae logs {name}"
        )
    if not record.at_anchor and not record.launcher_alive:
        raise UsageError(f"job {name}: its launcher is gone", f"Go on with it: parcae resume {name}")
    return record


def open_doors(journal: Journal, record: JobRecord) -> dict[str, SshTarget | OwnSshTarget]:
    """How the job's nodes are reached, by name; those that are booting are left out."""
    if record.at_anchor:
        from cloud.anchor import AnchorRecord

        anchor = AnchorRecord.read(journal.anchor_folder(record.name))
        return {} if anchor is None else {ANCHOR: anchor.target}
    from runtime.control.fleet.doors import FOLDER, read_door

    folder = journal.job_folder(record.name) / FOLDER
    living: list[Instance] = [one.instance for one in journal.instances(record.name, live_only=True)]
    found = {one.name: read_door(folder, one) for one in living}
    return {name: target for name, target in found.items() if target is not None}


def _chosen(job: str, node: str | None, doors: Mapping[str, Any], booting: Sequence[str]) -> str:
    known = ", ".join(doors) or "none yet"
    if node in doors:
        return str(node)
    if node is not None and node in booting:
        raise UsageError(f"{node} of job {job} has not joined yet", f"There are: {known}")
    if node is not None:
        raise UsageError(f"job {job} has no node {node!r}", f"There are: {known}")
    if len(doors) == 1:
        return next(iter(doors))
    raise UsageError(f"job {job} has {len(doors)} nodes: say which", f"There are: {known}")


def _list(
    job: str, doors: Mapping[str, SshTarget | OwnSshTarget], booting: Sequence[str], as_json: bool
) -> None:
    from parcae_cli.render.output import print_json

    rows = [
        {"name": name, "host": target.host, "port": target.port, "user": target.username}
        for name, target in doors.items()
    ]
    if as_json:
        print_json({"job": job, "nodes": rows, "booting": list(booting)})
        return
    for row in rows:
        user, port = (f"{row['user']}@" if row["user"] else ""), (f":{row['port']}" if row["port"] else "")
        print(f"{row['name']}  {user}{row['host']}{port}")
    for name in booting:
        print(f"{name}  booting")
    if not rows:
        print(f"no node of job {job} can be reached yet", file=sys.stderr)


def go(name: str, target: SshTarget | OwnSshTarget, command: Sequence[str], terminal: bool) -> int:
    """Run the system's ssh to its end; its exit code is the remote one.

    Raises:
        FailedError: there is no ssh on this machine.
    """
    if shutil.which("ssh") is None:
        raise FailedError("ssh: there is no such program on this machine", "Install OpenSSH's client")
    with tempfile.TemporaryDirectory(prefix="parcae-ssh-") as folder:
        words = ["ssh", *ssh_options(name, target, Path(folder)), target.host]
        if command:
            words.append(command[0] if len(command) == 1 else shlex.join(command))
        elif not terminal:
            words[1:1] = ["-T"]
            words.append("exec sh -i")
        status = subprocess.run(words, check=False).returncode
    if status == _UNREACHABLE:
        print(f"parcae: ssh to {name} ended with 255: it may be gone. See: parcae status", file=sys.stderr)
    return 128 - status if status < 0 else status


def ssh_options(name: str, target: SshTarget | OwnSshTarget, folder: Path) -> list[str]:
    """The words between `ssh` and the host. Key and host key of a machine of ours go to files in `folder`."""
    from cloud.private_file import write_private
    from cloud.types import OwnSshTarget

    if isinstance(target, OwnSshTarget):
        options = [] if target.config is None else ["-F", target.config]
        options += [] if target.port is None else ["-p", str(target.port)]
        return options + ([] if target.username is None else ["-l", target.username])
    key, hosts = folder / "key", folder / "known_hosts"
    write_private(key, target.client_key.rstrip() + "\n")
    write_private(hosts, f"{name} {target.host_public_key.strip()}\n")
    options = ["-F", "none", "-i", str(key), "-p", str(target.port), "-l", target.username]
    for setting in (
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "PreferredAuthentications=publickey",
        f"HostKeyAlias={name}",
        f"UserKnownHostsFile={hosts}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "ConnectTimeout=10",
        "LogLevel=ERROR",
    ):
        options += ["-o", setting]
    return options
