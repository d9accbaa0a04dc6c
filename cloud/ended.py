"""Whether a launch was seen to its end: a mark in its folder, so that nobody has to ask the API again."""

from __future__ import annotations

from pathlib import Path

from cloud.private_file import write_private

_MARK = "ended"


def mark_ended(folder: Path) -> None:
    """The API has said that nothing of this launch is left: whoever sweeps later need not ask again."""
    if folder.is_dir():
        write_private(folder / _MARK, "")


def mark_begun(folder: Path) -> None:
    """From now on something of this launch may live (again)."""
    (folder / _MARK).unlink(missing_ok=True)


def has_ended(folder: Path) -> bool:
    """Whether a launch was seen to its end, or never began."""
    return (folder / _MARK).exists() or not (folder / "launch.json").exists()
