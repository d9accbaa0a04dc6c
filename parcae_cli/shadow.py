"""Refusing modules of other people that are called like ours: `cloud` and `runtime` are common names."""

from __future__ import annotations

from importlib.machinery import PathFinder
from pathlib import Path

from parcae_cli.errors import UsageError

OUR_PACKAGES = ("cloud", "runtime")
_OURS = Path(__file__).resolve().parents[1]


def refuse_shadowed_packages() -> None:
    """Make sure that `import cloud` and `import runtime` find Parcae's own packages.

    Raises:
        UsageError: something on Python's path comes before them.
    """
    for name in OUR_PACKAGES:
        found = _module(name, None)
        if found is not None and found.parent != _OURS:
            raise UsageError(
                f"{found} hides Parcae's own package {name!r}",
                f"Rename it, or take {found.parent} out of PYTHONPATH",
            )


def refuse_modules_in(folder: Path) -> None:
    """Make sure that a folder from which jobs are run has no module that is called like ours.

    Raises:
        UsageError: it has one; the message names it.
    """
    for name in OUR_PACKAGES:
        found = _module(name, [str(folder.resolve())])
        if found is not None and found.parent != _OURS:
            raise UsageError(
                f"{found} has the name of Parcae's own package {name!r}; one of them would hide the other",
                "Rename it, or run parcae from another folder",
            )


def _module(name: str, path: list[str] | None) -> Path | None:
    """The file of a module, or the folder of a package, that would be imported; a mere folder is neither."""
    spec = PathFinder.find_spec(name, path)
    if spec is None or spec.origin is None:
        return None
    origin = Path(spec.origin).resolve()
    return origin.parent if origin.stem == "__init__" else origin
