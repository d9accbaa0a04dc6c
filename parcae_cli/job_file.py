"""Files of a job (`parcae launch --job FILE`): options in TOML, under which the command line's are laid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from parcae_cli.errors import UsageError

# What belongs to one call of the command and not to the job.
_OF_THE_CALL = {"job", "yes", "detach", "dry_run", "json", "help"}


def lay_under(context: typer.Context, path: Path | None) -> Path | None:
    """Make the file's values the command's defaults.

    Raises:
        UsageError: the file cannot be read, or has a key or a value that the command does not know.
    """
    if path is None:
        return None
    from parcae_cli.commands.launch import launch

    types = get_type_hints(launch)
    options = {_key(option): str(option.name) for option in context.command.params}
    known = sorted(options.keys() - _OF_THE_CALL)
    found: dict[str, Any] = {}
    for written, value in _read(path).items():
        key = written.replace("-", "_")
        if key not in known:
            raise UsageError(f"{path}: {written}: unknown key; known here: {', '.join(known)}")
        try:
            found[options[key]] = _checked(value, types[options[key]])
        except ValueError as error:
            raise UsageError(f"{path}: {written}: {error}") from None
    context.default_map = found
    return path


def _key(option: Any) -> str:
    """`gpus_per_node` for --gpus-per-node; the argument's own name."""
    longest = max(option.opts, key=len)
    return str(longest).lstrip("-").replace("-", "_")


def _checked(value: Any, kind: Any) -> Any:
    """The value as the command line's would be; `kind` is the annotation of its parameter.

    Raises:
        ValueError: it has another type.
    """
    kinds = {kind, *get_args(kind)}
    if list[str] in kinds:
        values = value if isinstance(value, list) else [value]
        return [_checked(one, str) for one in values]
    if kinds & {int, float}:
        whole = float not in kinds
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ValueError(f"must be a {'whole ' if whole else ''}number, not {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"must be a finite number, not {value!r}")
    elif not isinstance(value, str):
        raise ValueError(f"must be a text, not {value!r}")
    return value


def _read(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--job {path}: there is no such file", f"Make one: parcae init {path}") from None
    except OSError as error:
        raise UsageError(f"--job {path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--job {path}: is not TOML: {error}") from None
