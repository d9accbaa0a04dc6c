"""What a user may decide about a rented fleet, on any cloud: a file of templates/fleets, checked.

Each cloud adds its own fields; their names and kinds are the file's keys and what may stand behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Self, get_args, get_origin, get_type_hints


@dataclass(frozen=True, kw_only=True)
class RentedTimes:
    """How patient we are, in seconds; the templates say what each is for.

    An anchor whose job has ended waits `anchor_linger_s` for its results to be fetched, and ends itself after
    `anchor_longest_s` whatever happens.
    """

    boot_s: float = 1200.0
    lease_s: float = 600.0
    notice_poll_s: float = 2.0
    describe_s: float = 5.0
    retry_s: float = 1.0
    grace_s: float = 10.0
    cool_down_s: float = 60.0
    close_s: float = 600.0
    anchor_linger_s: float = 3600.0
    anchor_longest_s: float = 1209600.0


@dataclass(frozen=True)
class AnchorType:
    """A machine that can be an anchor: its memory, and its price on demand."""

    memory_bytes: float
    usd_per_hour: float


@dataclass(frozen=True, kw_only=True)
class FleetSettings:
    """One fleet's settings. Empty strings mean: find out. `inside`: the launcher is in the nodes' network.

    Raises:
        ValueError: a value cannot be used; the message names its key.
    """

    region: str = ""
    zones: tuple[str, ...] = ()
    device: str = "instance"
    image: str = ""
    user: str
    python: str = "python3"
    packages: tuple[str, ...] = ()
    disk_gb: int = 100
    ssh_port: int = 22
    bootstrap: str = ""
    inside: bool = False
    anchor_type: str = ""
    anchor_image: str = ""
    anchor_python: str = "python3"
    anchor_packages: tuple[str, ...] = ()
    anchors: Mapping[str, AnchorType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.device not in ("instance", "model"):
            raise ValueError(f'device: must be "instance" or "model", not {self.device!r}')

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Self:
        """From the template's content.

        Raises:
            ValueError: a key is unknown, or its value is of the wrong kind; the message names it.
        """
        kinds = get_type_hints(cls)
        for key in table:
            if key not in kinds:
                raise ValueError(f"{key}: no such key; there are {', '.join(sorted(kinds))}")
        return cls(**{key: _value(key, value, kinds[key]) for key, value in table.items()})


def _value(key: str, value: Any, kind: Any) -> Any:
    if is_dataclass(kind):
        return _row(key, value, kind, complete=False)
    if get_origin(kind) is Mapping:
        if not isinstance(value, Mapping):
            raise ValueError(f"{key}: must be a table")
        row = get_args(kind)[1]
        return {name: _row(f"{key}.{name}", one, row, complete=True) for name, one in value.items()}
    if get_origin(kind) is tuple:
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(f"{key}: must be a list of strings, not {value!r}")
    accepted = (int, float) if kind is float else (kind,)
    good = isinstance(value, accepted) and (kind is bool) == isinstance(value, bool)
    if not good or (kind in (int, float) and not 0 <= value < math.inf):
        raise ValueError(f"{key}: must be of kind {kind.__name__}, not {value!r}")
    return value


def _row(where: str, table: Any, kind: Any, complete: bool) -> Any:
    """A table of numbers above 0, under the names of a dataclass's fields; `complete`: all of them."""
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: must be a table")
    known = {item.name for item in fields(kind)}
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{where}.{key}: no such key; there are {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{where}.{key}: must be a number above 0, not {value!r}")
    if complete and (missing := known - set(table)):
        raise ValueError(f"{where}: {', '.join(sorted(missing))} missing")
    return kind(**{key: float(value) for key, value in table.items()})
