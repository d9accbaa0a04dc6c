"""What a user may decide about a fleet on Compute Engine: templates/fleets/gcp.toml, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Times:
    """How patient we are, in seconds; the template says what each is for."""

    boot_s: float = 1200.0
    lease_s: float = 600.0
    longest_run_s: float = 86400.0
    operation_s: float = 600.0
    notice_poll_s: float = 2.0
    describe_s: float = 5.0
    retry_s: float = 1.0
    grace_s: float = 10.0
    cool_down_s: float = 60.0
    close_s: float = 600.0


@dataclass(frozen=True)
class Gpu:
    """The one GPU of a machine type: its memory, and what training reaches on it and between two of them.

    `usd_per_hour` is the machine's price on demand, which the API does not tell.
    """

    memory_bytes: float
    flops_per_s: float
    link_bytes_per_s: float
    usd_per_hour: float


@dataclass(frozen=True)
class GcpSettings:
    """One fleet's settings. Empty strings mean: find out."""

    machine_types: tuple[str, ...]
    project: str = ""
    region: str = ""
    zones: tuple[str, ...] = ()
    accelerator: str = ""
    device: str = "instance"
    image: str = ""
    network: str = "global/networks/default"
    user: str = "parcae"
    python: str = "python3"
    packages: tuple[str, ...] = ()
    disk_gb: int = 100
    ssh_port: int = 22
    notice_s: int = 30
    bootstrap: str = ""
    times: Times = field(default_factory=Times)
    machines: Mapping[str, Gpu] = field(default_factory=dict)

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> GcpSettings:
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
            elif key == "machines":
                if not isinstance(value, Mapping):
                    raise ValueError("machines: must be a table")
                known = {item.name for item in fields(Gpu)}
                values[key] = {
                    name: Gpu(**_numbers(row, f"machines.{name}", known, complete=True))
                    for name, row in value.items()
                }
            else:
                values[key] = _value(key, value, kinds[key])
        if not values.get("machine_types"):
            raise ValueError("machine_types: name one at least")
        if values.get("device", "instance") not in ("instance", "model"):
            raise ValueError(f'device: must be "instance" or "model", not {values["device"]!r}')
        if values.get("notice_s", 30) not in (30, 120):
            raise ValueError("notice_s: Compute Engine gives 30 s, or 120 s where the preview field is open")
        return cls(**values)


def _value(key: str, value: Any, kind: str) -> Any:
    if kind.startswith("tuple"):
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(f"{key}: must be a list of strings, not {value!r}")
    wanted: type = {"str": str, "int": int}[kind]
    if not isinstance(value, wanted) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
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
