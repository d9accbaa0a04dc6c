"""`parcae doctor`: whether this machine can plan, train and keep its records, and what to do where not."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from parcae_cli.errors import FailedError, ParcaeError
from parcae_cli.home import parcae_home

# A local worker of gpt-tiny and its agent take about this much; eight of them are the default fleet.
NODE_BYTES = 100e6
FLEET = 8


@dataclass(frozen=True)
class Check:
    """One thing looked at. `level`: `ok`, `warning` (something will not work) or `failed` (nothing will)."""

    name: str
    level: str
    found: str
    next_step: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check that this machine is ready, and say what to do where it is not."""
    from parcae_cli.render.output import print_json, text_console

    checks = [check() for check in CHECKS]
    failed = [check for check in checks if check.level == "failed"]
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        from rich.table import Table

        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[red]failed[/]"}
        for check in checks:
            table.add_row(marks[check.level], check.name, check.found)
            if check.next_step:
                table.add_row("", "", f"[dim]{check.next_step}[/]")
        text_console().print(table)
    if failed:
        names = ", ".join(check.name for check in failed)
        raise FailedError(f"not ready: {names}", "Do what is said there, then run parcae doctor again")


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.platform != "linux":
        return Check("python", "warning", f"{found} on {sys.platform}", "Local fleets need Linux")
    return Check("python", "ok", found)


def _package(name: str, need: str, next_step: str, level: str) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        return Check(name, level, f"not installed: {need}", next_step)


def _torch() -> Check:
    return _package("torch", "training needs it", "pip install 'parcae-cli\\[train]'", "warning")


def _asyncssh() -> Check:
    return _package("asyncssh", "nodes are reached with it", "pip install parcae-cli again", "failed")


def _memory() -> Check:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return Check("memory", "warning", "unknown: no /proc/meminfo", "Local fleets need Linux")
    found = f"{available / 1e9:.1f} GB free, {os.cpu_count()} CPUs"
    fits = int(available // NODE_BYTES)
    if fits < FLEET:
        return Check(
            "memory", "warning", found, f"Launch at most {max(1, fits)} local nodes: --nodes {max(1, fits)}"
        )
    return Check("memory", "ok", found)


def _home() -> Check:
    home = parcae_home()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=home):
            pass
    except OSError as error:
        reason = f"{home}: {error.strerror}"
        return Check("home", "failed", reason, "Set PARCAE_HOME to a folder that you can write")
    free = shutil.disk_usage(home).free
    if free < 1e9:
        return Check("home", "warning", f"{home}: {free / 1e6:.0f} MB free", "Make room, or set PARCAE_HOME")
    return Check("home", "ok", f"{home}, {free / 1e9:.0f} GB free")


def _loopback() -> Check:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        return Check(
            "network", "failed", f"127.0.0.1: {error}", "Allow connections of this machine to itself"
        )
    return Check("network", "ok", "this machine reaches itself")


def _ssh() -> Check:
    path = shutil.which("ssh")
    if path is None:
        return Check(
            "ssh", "warning", "no ssh command", "Install OpenSSH to log in to nodes; jobs run without it"
        )
    return Check("ssh", "ok", path)


def _templates() -> Check:
    from parcae_cli.catalogue import model_names, templates_folder

    names = model_names()
    return Check("templates", "ok", f"{len(names)} models in {templates_folder()}")


def _folder() -> Check:
    from parcae_cli.shadow import refuse_modules_in

    try:
        refuse_modules_in(Path.cwd())
    except ParcaeError as error:
        return Check("folder", "failed", error.what, error.next_step)
    return Check("folder", "ok", f"{Path.cwd()} has no module named like ours")


CHECKS: tuple[Callable[[], Check], ...] = (
    _python, _torch, _asyncssh, _ssh, _memory, _home, _loopback, _templates, _folder,
)  # fmt: skip
