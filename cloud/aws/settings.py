"""What a user may decide about an AWS fleet: the content of templates/fleets/aws.toml, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cloud.settings import FleetSettings, RentedTimes


@dataclass(frozen=True, kw_only=True)
class Times(RentedTimes):
    """`dead_man_s`: a node, or an anchor, that nobody has visited for so long shuts itself down."""

    dead_man_s: float = 1800.0


@dataclass(frozen=True)
class GpuSpeed:
    """What training reaches on a GPU, and between two instances that have it."""

    flops_per_s: float
    link_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class AwsSettings(FleetSettings):
    """One fleet's settings.

    `regions`: instead of `region`, several, of which one is rented in at a time. `notices` "eventbridge":
    rule and queue are made as a second source of notices; `queue_url`: a queue that gets them already.
    """

    regions: tuple[str, ...] = ()
    instance_types: tuple[str, ...] = ()
    gpu: str = ""
    image_parameter: str = ""
    user: str = "ubuntu"
    ssh_from: str = "0.0.0.0/0"
    max_price_usd_per_hour: float = 0.0
    placement_group: bool = False
    efa: bool = False
    notices: str = "metadata"
    queue_url: str = ""
    times: Times = field(default_factory=Times)
    gpus: Mapping[str, GpuSpeed] = field(default_factory=dict)
    anchor_profile: str = ""
    anchor_image_parameter: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.instance_types:
            raise ValueError("instance_types: name one at least")
        if self.region and self.regions:
            raise ValueError("regions: there is a region, too; give one of the two")
        if len(set(self.regions)) < len(self.regions):
            raise ValueError(f"regions: {', '.join(self.regions)} name one twice")
        if self.notices not in ("metadata", "eventbridge"):
            raise ValueError(f'notices: must be "metadata" or "eventbridge", not {self.notices!r}')
        if self.queue_url and self.notices == "eventbridge":
            raise ValueError('queue_url: with notices = "eventbridge" a queue is made; give one of the two')

    @property
    def all_regions(self) -> tuple[str, ...]:
        """Where may be rented; an empty name is the one that every AWS tool would take."""
        return self.regions or (self.region,)
