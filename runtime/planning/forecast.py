"""What availability will be: a forecaster turns the past into a distribution of what each interval brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from typing import Protocol

from runtime.planning.prior import PriorRates


@dataclass(frozen=True)
class Turn:
    """One thing an interval may bring: so many instances lost and gained, with this probability."""

    losses: int
    gains: int
    probability: float


QUIET = (Turn(0, 0, 1.0),)


@dataclass(frozen=True)
class Forecast:
    """`turns[h]` is the distribution of interval h + 1 from now; `mean[h]` the availability at its end."""

    turns: tuple[tuple[Turn, ...], ...]
    mean: tuple[float, ...]


class Forecaster(Protocol):
    """Predicts from the availability of past intervals, oldest first, the last being now."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        ...

    def forecast(self, history: Sequence[int], horizon: int, now_s: float) -> Forecast:
        """The next `horizon` intervals."""
        ...


def path_forecast(now: int, path: Sequence[int]) -> Forecast:
    """A forecast that is sure of itself: availability will be `path`."""
    turns = []
    for value in path:
        turns.append((Turn(max(0, now - value), max(0, value - now), 1.0),))
        now = value
    return Forecast(tuple(turns), tuple(float(value) for value in path))


@dataclass(frozen=True)
class LastValue:
    """Availability stays as it is."""

    name: str = "last-value"

    def forecast(self, history: Sequence[int], horizon: int, now_s: float) -> Forecast:
        """See `Forecaster`."""
        now = history[-1] if history else 0
        return Forecast((QUIET,) * horizon, (float(now),) * horizon)


@dataclass(frozen=True)
class Oracle:
    """Knows the truth: `path[i]` is the availability of interval i, which begins at i x interval_s."""

    path: tuple[int, ...]
    interval_s: float
    name: str = "oracle"

    def forecast(self, history: Sequence[int], horizon: int, now_s: float) -> Forecast:
        """See `Forecaster`."""
        index = int(now_s // self.interval_s)
        now = history[-1] if history else 0
        ahead = list(self.path[index + 1 : index + 1 + horizon])
        ahead += [ahead[-1] if ahead else now] * (horizon - len(ahead))
        return path_forecast(now, ahead)


@dataclass(frozen=True)
class Hazard:
    """Losses and gains come at the rates seen lately, in clusters of the sizes seen lately.

    An interval of the past weighs half as much every `half_life` intervals. What was seen is mixed with a
    guess that weighs `prior_intervals`, or with `prior` where there is one. Rates are rounded to steps of a
    few percent, so that tables can be kept.
    """

    half_life: float = 120.0
    prior_intervals: float = 60.0
    prior_events: float = 0.1
    largest: int = 4
    prior: PriorRates | None = None
    interval_s: float = 60.0
    name: str = "hazard"

    def forecast(self, history: Sequence[int], horizon: int, now_s: float) -> Forecast:
        """See `Forecaster`."""
        turns = self.turns(history)
        drift = sum(turn.probability * (turn.gains - turn.losses) for turn in turns)
        now = history[-1] if history else 0
        return Forecast((turns,) * horizon, tuple(max(0.0, now + drift * (h + 1)) for h in range(horizon)))

    def turns(self, history: Sequence[int]) -> tuple[Turn, ...]:
        """The distribution of what one interval brings."""
        decay = 0.5 ** (1 / self.half_life)
        weight, total = 1.0, 0.0
        changes = [after - before for before, after in pairwise(history)]
        masses = dict.fromkeys(range(-self.largest, self.largest + 1), 0.0)
        for change in reversed(changes):
            masses[max(-self.largest, min(self.largest, change))] += weight
            total += weight
            weight *= decay
        guess, weight = (self.prior_events, self.prior_events), self.prior_intervals
        if self.prior is not None:
            guess = self.prior.events(history[-1] if history else 0, self.interval_s)
            weight = self.prior.weight_h * 3600 / self.interval_s
        result = []
        for size in range(1, self.largest + 1):
            for sign, events in zip((-1, 1), guess, strict=True):
                prior = max(events, 1e-9) * 0.5**size
                mass = (masses[sign * size] + prior * weight) / (total + weight)
                mass = exp(round(log(mass) * 5) / 5)
                result.append(Turn(size if sign < 0 else 0, size if sign > 0 else 0, mass))
        quiet = 1.0 - sum(turn.probability for turn in result)
        if quiet < 0.05:
            scale = 0.95 / (1 - quiet)
            result = [Turn(turn.losses, turn.gains, turn.probability * scale) for turn in result]
            quiet = 1.0 - sum(turn.probability for turn in result)
        return (Turn(0, 0, quiet), *result)
