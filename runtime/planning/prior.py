"""What is known of a pool's capacity before a job has seen anything of it."""

from __future__ import annotations

from dataclasses import dataclass

# An event takes or brings 1, 2, 3, .. instances with probability 1/2, 1/4, 1/8, ..: two on average.
INSTANCES_PER_EVENT = 2.0


@dataclass(frozen=True)
class PriorRates:
    """How many of the instances held are lost, and how many come, per instance and hour.

    It is worth as much as `weight_h` hours of one's own watching.
    """

    losses_per_instance_hour: float
    gains_per_instance_hour: float
    weight_h: float

    def events(self, instances: int, interval_s: float) -> tuple[float, float]:
        """Losses and gains, as events per interval, with so many instances."""
        hours = max(1, instances) * interval_s / 3600 / INSTANCES_PER_EVENT
        return self.losses_per_instance_hour * hours, self.gains_per_instance_hour * hours
