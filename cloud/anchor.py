"""A rented anchor as data: what it is, what it costs, and how it is reached."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from cloud.private_file import write_private
from cloud.provider import CloudError
from cloud.settings import AnchorType, FleetSettings, RentedTimes
from cloud.types import SshTarget

Row = TypeVar("Row")

_FILE = "anchor.json"
_POLL_S = 1.0


@dataclass(frozen=True)
class BootFiles:
    """The files in which a machine's bootstrap says how it went, as a shell on it names them."""

    ready: str
    failed: str
    log: str


@dataclass(frozen=True)
class AnchorRecord:
    """One anchor. `launched_s` is in Unix seconds; `lease` is the file that keeps it alive while touched,
    as a shell on it names it.

    `sources` is the folder below its home that has our packages; empty until they are there.
    """

    id: str
    kind: str
    zone: str
    usd_per_hour: float
    launched_s: float
    target: SshTarget
    python: str
    boot: BootFiles
    lease: str
    sources: str = ""

    def write(self, folder: Path) -> None:
        """Keep it in a job's folder of the anchor, for the owner's eyes: it holds a key."""
        write_private(folder / _FILE, json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> AnchorRecord | None:
        """As it was written; None: nothing was rented, or nobody knows its address."""
        path = folder / _FILE
        if not path.exists():
            return None
        values: dict[str, Any] = json.loads(path.read_text())
        values["target"], values["boot"] = SshTarget(**values["target"]), BootFiles(**values["boot"])
        return cls(**values)


@dataclass(frozen=True)
class AnchorPlan:
    """An anchor that can be rented.

    `rent` rents it (blocking; what it asks for is on the disk first), `files` are what it is given, by their
    path below its PARCAE_HOME, and `fleet` the settings with which it rents nodes. `linger_s` is how long it
    waits for its results to be fetched, `boot_s` how long its boot may take.
    """

    kind: str
    zone: str
    usd_per_hour: float
    memory_bytes: float
    needed_bytes: float
    linger_s: float
    boot_s: float
    rent: Callable[[], AnchorRecord]
    files: Mapping[str, str]
    fleet: Mapping[str, Any]

    def told(self) -> dict[str, Any]:
        """What a dry run says of it."""
        return {
            "instance_type": self.kind,
            "zone": self.zone,
            "usd_per_hour": self.usd_per_hour,
            "memory_bytes": self.memory_bytes,
            "needed_bytes": self.needed_bytes,
        }


def wait_for_address(
    look: Callable[[], Row | None], name: str, times: RentedTimes, pause: Callable[[float], None]
) -> Row:
    """What `look` finds of the anchor once it has an address. Blocks.

    Raises:
        CloudError: it has none in time, or what `look` raises.
    """
    deadline_s = time.monotonic() + times.boot_s
    while True:
        if (found := look()) is not None:
            return found
        if time.monotonic() > deadline_s:
            raise CloudError(f"{name} has no address after {times.boot_s:.0f} s")
        pause(min(_POLL_S, times.describe_s))


def anchor_type(settings: FleetSettings, needed_bytes: float) -> tuple[str, AnchorType]:
    """The type that was named, or the cheapest whose memory is enough.

    Raises:
        ValueError: there is none, or we do not know the one that was named; the message names the key.
    """
    if settings.anchor_type:
        if settings.anchor_type not in settings.anchors:
            raise ValueError(
                f'anchor_type: [anchors."{settings.anchor_type}"] is missing: give its memory_bytes and '
                "usd_per_hour"
            )
        return settings.anchor_type, settings.anchors[settings.anchor_type]
    enough = [one for one in settings.anchors.items() if one[1].memory_bytes >= needed_bytes]
    if not enough:
        raise ValueError(
            f"anchors: none has the {needed_bytes / 1e9:.0f} GB that the backup of this model may take: add "
            "one, or use --backup none"
        )
    return min(enough, key=lambda one: one[1].usd_per_hour)
