"""What a user may decide about a fleet on Compute Engine: templates/fleets/gcp.toml, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloud.settings import FleetSettings, RentedTimes

# How long an instance may be asked to run at most. Source: Compute Engine, "Limit the run time of a VM".
_LONGEST_RUN_S = (30, 120 * 86400)


@dataclass(frozen=True, kw_only=True)
class Times(RentedTimes):
    """`longest_run_s`: when Compute Engine ends a node by itself; `operation_s`: how long one may take.

    `dead_man_s`: an anchor whose launcher has not been heard of for so long deletes itself.
    """

    longest_run_s: float = 86400.0
    operation_s: float = 600.0
    dead_man_s: float = 1800.0


@dataclass(frozen=True)
class Gpu:
    """The one GPU of a machine type: its memory, and what training reaches on it and between two of them.

    `usd_per_hour` is the machine's price on demand, which the API does not tell.
    """

    memory_bytes: float
    flops_per_s: float
    link_bytes_per_s: float
    usd_per_hour: float


@dataclass(frozen=True, kw_only=True)
class GcpSettings(FleetSettings):
    """One fleet's settings. `anchor_account`: the service account that an anchor acts as."""

    machine_types: tuple[str, ...] = ()
    project: str = ""
    accelerator: str = ""
    network: str = "global/networks/default"
    user: str = "parcae"
    notice_s: int = 30
    anchor_account: str = ""
    times: Times = field(default_factory=Times)
    machines: Mapping[str, Gpu] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.machine_types:
            raise ValueError("machine_types: name one at least")
        if self.notice_s not in (30, 120):
            raise ValueError("notice_s: Compute Engine gives 30 s, or 120 s where the preview field is open")
        least, most = _LONGEST_RUN_S
        for key in ("longest_run_s", "anchor_longest_s"):
            if not least <= getattr(self.times, key) <= most:
                raise ValueError(f"times.{key}: Compute Engine takes {least} to {most} s")
