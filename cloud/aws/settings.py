"""What a user may decide about an AWS fleet: the content of templates/fleets/aws.toml, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Times:
    """How patient we are, in seconds; the template says what each is for."""

    boot_s: float = 1200.0
    lease_s: float = 600.0
    dead_man_s: float = 1800.0
    notice_poll_s: float = 2.0
    describe_s: float = 5.0
    retry_s: float = 1.0
    grace_s: float = 10.0
    cool_down_s: float = 60.0
    close_s: float = 600.0


@dataclass(frozen=True)
class GpuSpeed:
    """What training reaches on a GPU, and between two instances that have it."""

    flops_per_s: float
    link_bytes_per_s: float


@dataclass(frozen=True)
class AwsSettings:
    """One fleet's settings. Empty strings mean: find out."""

    instance_types: tuple[str, ...]
    region: str = ""
    zones: tuple[str, ...] = ()
    gpu: str = ""
    device: str = "instance"
    image: str = ""
    image_parameter: str = ""
    user: str = "ubuntu"
    python: str = "python3"
    packages: tuple[str, ...] = ()
    disk_gb: int = 100
    ssh_port: int = 22
    ssh_from: str = "0.0.0.0/0"
    max_price_usd_per_hour: float = 0.0
    placement_group: bool = False
    efa: bool = False
    bootstrap: str = ""
    times: Times = field(default_factory=Times)
    gpus: Mapping[str, GpuSpeed] = field(default_factory=dict)

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> AwsSettings:
        """From the template's content.

        Raises:
            ValueError: a key is unknown, or its value is of the wrong kind; the message names it.
        """
        values: dict[str, Any] = {}
        kinds = {item.name: str(item.type) for item in fields(cls)}
        for key, value in table.items():
            if key not in kinds:
                raise ValueError(f"{key}: no such key; there are {', '.join(sorted(kinds))}")
            if key == "times":
                values[key] = Times(**_numbers(value, "times", {item.name for item in fields(Times)}))
            elif key == "gpus":
                speeds = {item.name for item in fields(GpuSpeed)}
                values[key] = {
                    name: GpuSpeed(**_numbers(row, f"gpus.{name}", speeds, complete=True))
                    for name, row in value.items()
                }
            else:
                values[key] = _value(key, value, kinds[key])
        if not values.get("instance_types"):
            raise ValueError("instance_types: name one at least")
        if values.get("device", "instance") not in ("instance", "model"):
            raise ValueError(f'device: must be "instance" or "model", not {values["device"]!r}')
        return cls(**values)


def _value(key: str, value: Any, kind: str) -> Any:
    if kind.startswith("tuple"):
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(f"{key}: must be a list of strings, not {value!r}")
    accepted: dict[str, tuple[type, ...]] = {
        "str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)
    }  # fmt: skip
    good = isinstance(value, accepted[kind]) and (kind == "bool") == isinstance(value, bool)
    if not good or (kind in ("int", "float") and value < 0):
        raise ValueError(f"{key}: must be of kind {kind}, not {value!r}")
    return value


def _numbers(table: Any, where: str, known: set[str], complete: bool = False) -> dict[str, float]:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where}: must be a table")
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{where}.{key}: no such key; there are {', '.join(sorted(known))}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"{where}.{key}: must be a number above 0, not {value!r}")
    if complete and (missing := known - set(table)):
        raise ValueError(f"{where}: {', '.join(sorted(missing))} missing")
    return {key: float(value) for key, value in table.items()}
