"""Files of `parcae profile`: read, and laid over a model's template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parcae_cli.catalogue import load_template
from runtime.planning.errors import InputError
from runtime.planning.measured import parse_measured
from runtime.planning.model import ModelSpec, parse_model
from runtime.planning.table import Table


def read_measured(path: Path) -> dict[str, Any]:
    """The content of a profile's file.

    Raises:
        InputError: it cannot be read, or is not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; make one with parcae profile") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError(f"{path}: is not JSON: {error}; make one with parcae profile") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: must be a JSON object; make one with parcae profile")
    return found


def with_profile(template: dict[str, Any], path: Path, model: str) -> dict[str, Any]:
    """The template with what was measured of its model laid over it; complaints name the profile's file.

    Raises:
        InputError: the file is wrong, or of another model.
    """
    spec = parse_model(template, model)
    found = read_measured(path)
    table = Table(found, str(path))
    parse_measured(table, tuple(layer.params for layer in spec.layers), spec.training)
    laid = {**template, "measured": found}
    try:
        parse_model(laid, model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return laid


def model_with_profile(model: str, path: Path) -> ModelSpec:
    """A model, by name or file, with what was measured of it.

    Raises:
        InputError: as for `load_model` and `with_profile`.
    """
    return parse_model(with_profile(load_template(model), path, model), model)


def profiled_model(path: Path) -> str:
    """The model that a profile is of, as it was named when it was measured.

    Raises:
        InputError: the file is wrong.
    """
    return Table(read_measured(path), str(path)).text("model")
