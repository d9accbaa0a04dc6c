"""Whether a file may be written where the user wants it."""

from __future__ import annotations

from pathlib import Path

from parcae_cli.errors import UsageError

STDOUT = "-"


def check_new_file(path: Path, force: bool, option: str = "") -> None:
    """Refuse what would be written over, or nowhere; `-` is stdout. `option` is what names it, if one does.

    Raises:
        UsageError: it is a folder, is there already (unless `force`), or its folder is not.
    """
    by = f" with {option}" if option else ""
    if str(path) == STDOUT:
        return
    if path.is_dir():
        raise UsageError(f"{path}: is a folder", f"Give a file{by}")
    if path.exists() and not force:
        other = f"Choose another{by}" if option else "Choose another name"
        raise UsageError(f"{path}: is there already", f"{other}, or add --force")
    if not path.parent.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {path.parent}".lstrip(), "Make it first")
