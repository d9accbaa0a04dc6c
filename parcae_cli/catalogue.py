"""What ships with the program (models, profiles, traces), found alike in a checkout and in a wheel."""

from __future__ import annotations

import json
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import Any

from runtime.planning.errors import InputError
from runtime.planning.model import ModelSpec, parse_model


@lru_cache(maxsize=1)
def templates_folder() -> Path:
    """The folder of the shipped templates: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "templates", package.parent / "templates"):
        if (folder / "models").is_dir():
            return folder
    raise InputError(f"{package}: the templates are missing; install parcae-cli again")


def model_names() -> tuple[str, ...]:
    """The names of the shipped models, sorted."""
    return tuple(sorted(path.stem for path in (templates_folder() / "models").glob("*.toml")))


def load_model(name: str) -> ModelSpec:
    """A shipped model by name, or a template of the user's own by path: TOML, or JSON with the same keys.

    Raises:
        InputError: there is no such model or file, or it is not a good template.
    """
    path = _model_path(name)
    return parse_model(_read(path), str(path))


def load_template(name: str) -> dict[str, Any]:
    """The content of a model's template, found like `load_model` finds it, not checked.

    Raises:
        InputError: there is no such model or file, or it is not TOML.
    """
    return _read(_model_path(name))


def load_measured_costs() -> dict[str, Any]:
    """What migrations cost in Parcae's own runtime, as it was measured."""
    path = templates_folder() / "profiles" / "measured.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table


def load_fleet(cloud: str, own: str | None = None) -> dict[str, Any]:
    """The settings of a cloud's fleet with its bootstrap script, and the user's file laid over them.

    Raises:
        InputError: the file is missing or not TOML.
    """
    table = _read(templates_folder() / "fleets" / f"{cloud}.toml")
    script = templates_folder() / "bootstrap" / f"{cloud}.sh"
    if script.exists():
        table["bootstrap"] = script.read_text(encoding="utf-8")
    for key, value in (_read(Path(own)) if own is not None else {}).items():
        table[key] = table[key] | value if isinstance(table.get(key), dict) else value
    return table


def _model_path(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".toml", ".json") or "/" in name or path.is_file():
        if path.is_dir():
            raise InputError(f"{name}: is a folder; give the template in it")
        if not path.is_file():
            raise InputError(
                f"{name}: no such file; give a model's name ({', '.join(model_names())}) or a template"
            )
    else:
        path = templates_folder() / "models" / f"{name}.toml"
        if not path.is_file() or Path(name).name != name:
            raise InputError(
                f"no model {name!r}; there are {', '.join(model_names())}, or give the path of a .toml file"
            )
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.suffix == ".json":
            return _json(path)
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: is not TOML: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise InputError(f"{path}: must be a JSON object")
    return table
