"""The hazard model: losses and gains come at the rates seen lately, in clusters of the sizes seen lately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, log

import numpy as np
import numpy.typing as npt

from runtime.planning.forecast import Forecast, Turn
from runtime.planning.prior import PriorRates

Counts = npt.NDArray[np.int_]
Weights = npt.NDArray[np.float64]

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # clusters are counted as the nearest of these
GUESSED_SIZES = ((1, 0.5), (2, 0.25), (3, 0.15), (4, 0.1))  # before anything was seen
SMALLEST = 3e-4  # chances below this are none
MOST_EVENTFUL = 0.95  # however much happens, an interval without an event is possible
ROUNDING = 5  # rates are kept to 1 in so many of a factor e


@dataclass
class _Seen:
    """What the past says of losses or of gains, the late past weighing more."""

    events: float = 0.0
    hot_events: float = 0.0  # those soon after another of their kind
    hot: float = 0.0  # intervals soon after one
    sizes: dict[int, float] = field(default_factory=lambda: dict.fromkeys(SIZES, 0.0))


@dataclass(frozen=True)
class Hazard:
    """Losses and gains come at the rates seen lately, in clusters of the sizes seen lately.

    An interval of the past weighs half as much every `half_life` intervals. What was seen is mixed with a
    guess of `guessed_rate` events an interval, which weighs `guess_weight` intervals, or with a `prior` where
    there is one. For `burst` intervals after a loss the rate of losses is that seen soon after losses, mixed
    with `burst_weight` intervals of the common rate; the same for gains. Rates are rounded to steps of some
    percent, so that tables can be kept.
    """

    half_life: float = 120.0
    guess_weight: float = 20.0
    guessed_rate: float = 0.07
    sizes_weight: float = 2.0
    burst: int = 3
    burst_weight: float = 30.0
    prior: PriorRates | None = None
    interval_s: float = 60.0
    name: str = "hazard"

    def forecast(self, history: Sequence[int], horizon: int, now_s: float) -> Forecast:
        """See `Forecaster`."""
        soon, later, age = self._look(history)
        turns = tuple(soon if h < max(0, self.burst - age) else later for h in range(horizon))
        mean, expected = float(history[-1] if history else 0), []
        for interval in turns:
            mean = max(0.0, mean + sum(turn.probability * (turn.gains - turn.losses) for turn in interval))
            expected.append(mean)
        return Forecast(turns, tuple(expected))

    def turns(self, history: Sequence[int]) -> tuple[Turn, ...]:
        """The distribution of what an interval brings, bursts aside."""
        return self._look(history)[1]

    def _look(self, history: Sequence[int]) -> tuple[tuple[Turn, ...], tuple[Turn, ...], int]:
        """What an interval brings soon and later, and how many intervals ago the last event was."""
        changes = np.diff(np.array(history, dtype=int)) if len(history) > 1 else np.zeros(0, dtype=int)
        weights = 0.5 ** (np.arange(len(changes))[::-1] / self.half_life)
        total = float(weights.sum())
        losses, loss_age = self._seen(-changes, weights)
        gains, gain_age = self._seen(changes, weights)
        since = {-1: loss_age, 1: gain_age}
        guess, guess_weight = (self.guessed_rate, self.guessed_rate), self.guess_weight
        if self.prior is not None:
            guess = self.prior.events(history[-1] if history else 0, self.interval_s)
            guess_weight = self.prior.weight_h * 3600 / self.interval_s
        soon: list[Turn] = []
        later: list[Turn] = []
        for sign, seen, guessed in zip((-1, 1), (losses, gains), guess, strict=True):
            rate = (seen.events + guessed * guess_weight) / (total + guess_weight)
            burst = (seen.hot_events + rate * self.burst_weight) / (seen.hot + self.burst_weight)
            later += self._by_size(sign, rate, seen)
            soon += self._by_size(sign, burst if since[sign] < self.burst else rate, seen)
        return _whole(soon), _whole(later), min(since.values())

    def _seen(self, changes: Counts, weights: Weights) -> tuple[_Seen, int]:
        """What the past says of changes above zero, and how many intervals ago the last of them was."""
        events = changes > 0
        hot = np.zeros_like(events)
        for after in range(1, min(self.burst, len(events)) + 1):
            hot[after:] |= events[:-after]
        seen = _Seen(
            events=float(weights[events].sum()),
            hot_events=float(weights[events & hot].sum()),
            hot=float(weights[hot].sum()),
        )
        for size, weight in zip(changes[events].tolist(), weights[events].tolist(), strict=True):
            seen.sizes[_nearest(size)] += weight
        last = np.flatnonzero(events[::-1][: self.burst])
        return seen, int(last[0]) if len(last) else self.burst

    def _by_size(self, sign: int, rate: float, seen: _Seen) -> list[Turn]:
        """Events of one kind, their rate shared out by cluster size."""
        shares = dict(GUESSED_SIZES)
        turns = []
        for size, mass in seen.sizes.items():
            mass += shares.get(size, 0.0) * self.sizes_weight
            chance = rate * mass / (seen.events + self.sizes_weight)
            if chance > SMALLEST:
                chance = exp(round(log(chance) * ROUNDING) / ROUNDING)
                turns.append(Turn(size if sign < 0 else 0, size if sign > 0 else 0, chance))
        return turns


@lru_cache(maxsize=1024)
def _nearest(size: int) -> int:
    return min(SIZES, key=lambda known: abs(known - size))


def _whole(events: list[Turn]) -> tuple[Turn, ...]:
    """The events of an interval and, for what is left of certainty, none."""
    some = sum(turn.probability for turn in events)
    if some > MOST_EVENTFUL:
        events = [Turn(turn.losses, turn.gains, turn.probability * MOST_EVENTFUL / some) for turn in events]
        some = MOST_EVENTFUL
    return (Turn(0, 0, 1.0 - some), *events)
