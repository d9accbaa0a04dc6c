"""How each node of a running job is reached over SSH, in private files that another process may read.

The launcher writes `NODE.json` in the job's folder `ssh` when a node's worker has joined, and removes the
folder when the fleet is stopped. A door is good for the very instance whose id it has.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

from cloud.private_file import write_private
from cloud.types import Instance, OwnSshTarget, SshTarget

FOLDER = "ssh"


def write_door(folder: Path, instance: Instance, target: SshTarget | OwnSshTarget) -> None:
    """Write down how this instance is reached; for its owner only, since a key may be in it."""
    pinned = isinstance(target, SshTarget)
    door = {"instance": instance.id, "pinned": pinned, "target": asdict(target)}
    with contextlib.suppress(OSError):  # only `parcae ssh` misses it
        write_private(folder / f"{instance.name}.json", json.dumps(door))


def read_door(folder: Path, instance: Instance) -> SshTarget | OwnSshTarget | None:
    """How the instance is reached; None where nobody has written it down (yet)."""
    path = folder / f"{instance.name}.json"
    try:
        door = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if door["instance"] != instance.id:
        return None
    return SshTarget(**door["target"]) if door["pinned"] else OwnSshTarget(**door["target"])
