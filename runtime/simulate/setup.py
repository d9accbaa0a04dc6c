"""What a replay depends on."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property

from runtime.planning.costs import CostModel
from runtime.planning.forecast import Forecaster
from runtime.planning.model import ModelSpec
from runtime.planning.placement import instance_of
from runtime.planning.profile import Profile
from runtime.planning.trace import Trace

BOOT_SIGMA = 0.25  # an assumption: nobody publishes the spread of boot times


@dataclass(frozen=True)
class ReplaySetup:
    """Everything that a replay depends on. `notice_s` is how long before a removal it is known.

    `seed` 0 takes the trace and the boot time as they are; `seeded` makes the set-up of another.
    The trace's instances have `gpus` GPUs each; prices are per instance.
    """

    trace: Trace
    model: ModelSpec
    profile: Profile
    costs: CostModel
    forecaster: Forecaster
    interval_s: float = 60.0
    lookahead: int = 12
    history: int = 12
    notice_s: float = 0.0
    boot_s: float = 0.0
    redundancy_overhead: float = 0.2
    anchor_usd_per_hour: float = 0.0
    seed: int = 0
    gpus: int = 1

    @cached_property
    def workers(self) -> Trace:
        """The trace by workers instead of instances: what trains, comes and goes."""
        return self.trace if self.gpus == 1 else self.trace.lives.with_gpus(self.gpus)

    def seeded(self, seed: int) -> ReplaySetup:
        """The same with other luck: who is hit by each loss, and how long each instance takes to boot."""
        return self if seed == 0 else replace(self, trace=self.trace.redrawn(seed), seed=seed)

    def boot_of(self, instance: str) -> float:
        """Seconds that an instance takes to boot, and so its workers.

        With a seed they are drawn: log-normal about the mean, with a coefficient of variation of a quarter.
        """
        if self.seed == 0 or not self.boot_s:
            return self.boot_s
        draw = random.Random(f"{self.seed} {instance_of(instance, self.gpus)}")
        return self.boot_s * draw.lognormvariate(-(BOOT_SIGMA**2) / 2, BOOT_SIGMA)

    @property
    def max_nodes(self) -> int:
        """The most instances that the trace ever has."""
        return max((count for _, count in self.trace.counts), default=0)
