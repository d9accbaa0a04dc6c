"""`parcae init`: write a commented file to begin with."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from parcae_cli.errors import UsageError
from parcae_cli.new_file import check_new_file

# What there is, by kind: the file's default name, and the command that takes it.
KINDS = {
    "job": ("parcae.toml", "parcae launch --job {}"),
    "model": ("model.toml", "parcae launch {}"),
    "hosts": ("hosts.toml", "parcae launch gpt-tiny --cloud hosts --hosts {}"),
}


def init(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="The file to write; - is stdout. Default: parcae.toml, model.toml or hosts.toml.",
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="job (options of `parcae launch`), model (a model of your own) or hosts (your machines).",
        ),
    ] = "job",
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> None:
    """Write a commented file: a job for `parcae launch --job FILE`, a model of your own, or your machines."""
    from parcae_cli.catalogue import templates_folder

    if kind not in KINDS:
        raise UsageError(f"--kind {kind}: there is no such kind", f"There are: {', '.join(KINDS)}")
    usual, command = KINDS[kind]
    text = (templates_folder() / "init" / f"{kind}.toml").read_text(encoding="utf-8")
    path = Path(usual) if file is None else file.expanduser()
    if str(path) == "-":
        sys.stdout.write(text)
        return
    check_new_file(path, force)
    path.write_text(text, encoding="utf-8")
    then = command.format(shlex.quote(str(path)))
    print(f"{path} is written.  Edit it, then: {then} --dry-run", file=sys.stderr)
