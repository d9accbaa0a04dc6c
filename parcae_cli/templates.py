"""The files that come with Parcae: models, profiles, traces; found alike in a checkout and in a wheel."""

from __future__ import annotations

from pathlib import Path

from parcae_cli.errors import FailedError, UsageError

_HERE = Path(__file__).resolve().parent


def templates_dir() -> Path:
    """The folder with models/, profiles/ and traces/.

    Raises:
        FailedError: the installation is incomplete.
    """
    # A wheel carries them inside this package; a checkout has them at its top.
    for folder in (_HERE / "templates", _HERE.parent / "templates"):
        if (folder / "models").is_dir():
            return folder
    raise FailedError(f"{_HERE / 'templates'} is missing", "Install parcae-cli again")


def model_names() -> list[str]:
    """The names of the models that come with Parcae, sorted."""
    return sorted(path.stem for path in (templates_dir() / "models").glob("*.toml"))


def model_path(model: str) -> Path:
    """The template of a model, given by its name or as a path to a .toml file of the user's own.

    Raises:
        UsageError: there is no such model.
    """
    if model.endswith(".toml") or "/" in model:
        path = Path(model).expanduser()
        if not path.is_file():
            raise UsageError(f"model file not found: {model}", "Names that need no file: parcae models")
        return path.resolve()
    known = model_names()
    if model not in known:
        raise UsageError(
            f"no model named {model!r}; there are {', '.join(known) or 'none'}",
            "Or give a path to a .toml file of your own",
        )
    return templates_dir() / "models" / f"{model}.toml"
