"""What is known of capacity before a job has seen any of it: told by the cloud, or learnt by earlier jobs.

Losses, and likewise gains, are taken for a Poisson process with a rate per instance and hour, of which a
Gamma distribution is known. After n events in T instance hours, on top of a distribution with the mean m
and the weight t, its mean is

    (m t + n) / (t + T)

so a mean and a weight are all there is to a prior. What is old counts for less: what was seen a hours ago
enters n and T with the factor 2^(-a / HALF_LIFE_H). The weight of a learnt prior is the decayed hours that
were watched, at most MOST_WEIGHT_H, since pools drift: a job's own eyes are to be believed before long. How
likely another event is soon after one is left to the job's own eyes: learnt beforehand it made replays
worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

# An event takes or brings 1, 2, 3, .. instances with probability 1/2, 1/4, 1/8, ..: two on average.
INSTANCES_PER_EVENT = 2.0
HALF_LIFE_H = 24.0  # capacity has the day's rhythm, and drifts over weeks
MOST_WEIGHT_H = 4.0

Sizes = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class PriorRates:
    """How many of the instances held are lost, and how many come, per instance and hour.

    It is worth as much as `weight_h` hours of one's own watching. `loss_sizes` and `gain_sizes` say how many
    events (older ones as fractions) took or brought how many instances at once; empty: nobody knows.
    """

    losses_per_instance_hour: float
    gains_per_instance_hour: float
    weight_h: float
    loss_sizes: Sizes = ()
    gain_sizes: Sizes = ()

    def events(self, instances: int, interval_s: float) -> tuple[float, float]:
        """Losses and gains, as events per interval, with so many instances."""
        hours = max(1, instances) * interval_s / 3600
        return (
            self.losses_per_instance_hour * hours / instances_per_event(self.loss_sizes),
            self.gains_per_instance_hour * hours / instances_per_event(self.gain_sizes),
        )

    def mixed_with(self, other: PriorRates | None) -> PriorRates:
        """Both, each for as much as it is worth; the sizes are ours where we know them."""
        if other is None:
            return self
        weight_h = self.weight_h + other.weight_h

        def mean(ours: float, theirs: float) -> float:
            return (ours * self.weight_h + theirs * other.weight_h) / weight_h if weight_h else ours

        return PriorRates(
            mean(self.losses_per_instance_hour, other.losses_per_instance_hour),
            mean(self.gains_per_instance_hour, other.gains_per_instance_hour),
            min(weight_h, max(MOST_WEIGHT_H, self.weight_h, other.weight_h)),
            self.loss_sizes or other.loss_sizes,
            self.gain_sizes or other.gain_sizes,
        )


def instances_per_event(sizes: Sizes) -> float:
    """The mean size; the usual one where nobody knows."""
    events = sum(count for _, count in sizes)
    return sum(size * count for size, count in sizes) / events if events else INSTANCES_PER_EVENT


@dataclass(frozen=True)
class Stretch:
    """What was seen in one pool in intervals that follow each other, the oldest first.

    `held` are the instances there, `lost` those that the cloud took in the interval and `came` those that it
    gave; `ended_h` is how many hours ago the last interval was.
    """

    held: Sequence[int]
    lost: Sequence[int]
    came: Sequence[int]
    interval_s: float = 60.0
    ended_h: float = 0.0


def stretch_of(counts: Sequence[int], interval_s: float = 60.0) -> Stretch:
    """The availability of intervals as one stretch: what goes is lost, what comes was given."""
    changes = [after - before for before, after in pairwise(counts)]
    lost, came = [max(0, -change) for change in changes], [max(0, change) for change in changes]
    return Stretch(counts[:-1], lost, came, interval_s)


@dataclass
class _Tally:
    """Decayed sums of one kind of events."""

    instances: float = 0.0
    sizes: dict[int, float] = field(default_factory=dict)

    def add(self, counts: Sequence[int], weights: Sequence[float]) -> None:
        for count, weight in zip(counts, weights, strict=True):
            if count > 0:
                self.instances += weight * count
                self.sizes[count] = self.sizes.get(count, 0.0) + weight


def learnt(stretches: Iterable[Stretch], half_life_h: float = HALF_LIFE_H) -> PriorRates | None:
    """The rates that these stretches speak for; None where no instance was watched.

    Stretches of several pools are taken together: the rate of a fleet that is spread over them as those were.
    """
    losses, gains = _Tally(), _Tally()
    instance_hours = hours = 0.0
    for one in stretches:
        hour = one.interval_s / 3600
        weights = [0.5 ** ((one.ended_h + hour * back) / half_life_h) for back in range(len(one.held))][::-1]
        instance_hours += hour * sum(weight * held for weight, held in zip(weights, one.held, strict=True))
        hours += hour * sum(weight for weight, held in zip(weights, one.held, strict=True) if held > 0)
        losses.add(one.lost, weights)
        gains.add(one.came, weights)
    if instance_hours <= 0:
        return None
    return PriorRates(
        losses.instances / instance_hours,
        gains.instances / instance_hours,
        min(hours, MOST_WEIGHT_H),
        tuple(sorted(losses.sizes.items())),
        tuple(sorted(gains.sizes.items())),
    )
