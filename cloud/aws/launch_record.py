"""What must survive a crash of the launcher: files in the job's folder."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cloud.aws.bootstrap import HostKey, new_host_key
from cloud.aws.requests import Owner, PoolPlan
from cloud.private_file import write_private
from cloud.types import Pool


@dataclass(frozen=True)
class RegionPools:
    """What one region has of the machine that was chosen: VPC, pools (the best first), placement scores."""

    region: str
    vpc: str
    plans: tuple[PoolPlan, ...]
    scores: dict[str, int]


@dataclass(frozen=True)
class Rental:
    """The machine that a job was planned for, and where it may be rented, the best region first."""

    gpu: str
    gpus: int
    gpu_memory_bytes: int
    regions: tuple[RegionPools, ...]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Rental:
        """As it was written."""
        regions = tuple(
            RegionPools(
                one["region"],
                one["vpc"],
                tuple(PoolPlan(Pool(**plan["pool"]), plan["subnet"]) for plan in one["plans"]),
                one["scores"],
            )
            for one in values["regions"]
        )
        return cls(values["gpu"], values["gpus"], values["gpu_memory_bytes"], regions)


@dataclass(frozen=True)
class LaunchRecord:
    """Who we are in the cloud, the host key of our nodes, and what was chosen.

    `region` is the first choice. `events`: queues and rules may have been made, too. `rental` None: the
    record is not of a fleet, or of an older version.
    """

    job: str
    launch: str
    region: str
    host_key: HostKey
    events: bool = False
    rental: Rental | None = None

    @property
    def owner(self) -> Owner:
        """For tags."""
        return Owner(self.job, self.launch)

    @classmethod
    def at(
        cls, folder: Path, job: str, region: str, events: bool = False, rental: Rental | None = None
    ) -> LaunchRecord:
        """The record in the job's folder, or a new one; on the disk it then has this choice."""
        path = folder / "launch.json"
        if path.exists():
            known = cls.read(path)
            record = replace(known, events=events or known.events, rental=rental or known.rental)
            if record == known:
                return known
        else:
            record = cls(job, secrets.token_hex(10), region, new_host_key(), events, rental)
        write_private(path, json.dumps(asdict(record)))
        return record

    @classmethod
    def read(cls, path: Path) -> LaunchRecord:
        """A record as it was written."""
        fields = json.loads(path.read_text())
        rental = fields.get("rental")
        return cls(
            fields["job"],
            fields["launch"],
            fields["region"],
            HostKey(**fields["host_key"]),
            fields.get("events", False),
            None if rental is None else Rental.from_json(rental),
        )


def requests_folder(folder: Path, region: str) -> Path:
    """Where the requests to a region are kept that may have brought instances; there from its first use."""
    return folder / "requests" / region


def used_regions(folder: Path, record: LaunchRecord) -> tuple[str, ...]:
    """Where anything of the launch may be: the first choice, and every region that was made ready."""
    kept = folder / "requests"
    made: Iterable[str] = (
        sorted(path.name for path in kept.iterdir() if path.is_dir()) if kept.is_dir() else ()
    )
    return tuple(dict.fromkeys((record.region, *made)))
