"""The hazard model: losses and gains come at the rates seen lately, in clusters of the sizes seen lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import exp, log

import numpy as np
import numpy.typing as npt

from runtime.planning.forecast import Forecast, Turn
from runtime.planning.outlook import USUAL, Outlook
from runtime.planning.prior import PriorRates

Counts = npt.NDArray[np.int_]
Weights = npt.NDArray[np.float64]

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # clusters are counted as the nearest of these
GUESSED_SIZES = ((1, 0.5), (2, 0.25), (3, 0.15), (4, 0.1))  # before anything was seen
SMALLEST = 3e-4  # chances below this are none
MOST_EVENTFUL = 0.95  # however much happens, an interval without an event is possible
MOST_SIZES = 10.0  # events whose sizes a prior may speak for
ROUNDING = 5  # rates are kept to 1 in so many of a factor e


@dataclass
class _Seen:
    """What the past says of losses or of gains, the late past weighing more."""

    events: float = 0.0
    hot_events: float = 0.0  # those soon after another of their kind
    hot: float = 0.0  # intervals soon after one
    sizes: dict[int, float] = field(default_factory=lambda: dict.fromkeys(SIZES, 0.0))


@dataclass(frozen=True)
class _Guess:
    """What is thought before anything is seen: so many `events` in `weight` intervals, and of these sizes."""

    events: float
    weight: float
    sizes: Mapping[int, float]


@dataclass(frozen=True)
class Hazard:
    """Losses and gains come at the rates seen lately, in clusters of the sizes seen lately.

    An interval of the past weighs half as much every `half_life` intervals. What was seen is mixed with a
    guess of `guessed_rate` events an interval, which weighs `guess_weight` intervals. A `prior` is worth its
    hours in intervals, and takes the place of as much of the guess:

        rate = (seen + prior rate x its weight + guessed rate x what is left of the guess's weight)
               / (intervals + prior's weight + what is left)

    so too for the sizes of clusters, where a prior speaks for ten events at most. `outlook` multiplies the
    rates by what the market says of the next minutes. For `burst` intervals after a loss the rate of losses
    is that seen soon after losses, mixed with `burst_weight` intervals of the common rate; the same for
    gains. Rates are rounded to steps of some percent, so that tables can be kept.
    """

    half_life: float = 120.0
    guess_weight: float = 20.0
    guessed_rate: float = 0.07
    sizes_weight: float = 2.0
    burst: int = 3
    burst_weight: float = 30.0
    prior: PriorRates | None = None
    outlook: Outlook = USUAL
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
        now = history[-1] if history else 0
        soon: list[Turn] = []
        later: list[Turn] = []
        for sign, seen in ((-1, losses), (1, gains)):
            guess = self._guess(sign, now)
            rate = (seen.events + guess.events) / (total + guess.weight)
            burst = (seen.hot_events + rate * self.burst_weight) / (seen.hot + self.burst_weight)
            factor = self.outlook.gains if sign > 0 else self.outlook.losses
            later += self._by_size(factor * rate, seen, guess, sign)
            soon += self._by_size(factor * (burst if since[sign] < self.burst else rate), seen, guess, sign)
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

    def _guess(self, sign: int, now: int) -> _Guess:
        """What is thought of losses or of gains before anything is seen, with `now` instances."""
        shares = {size: share * self.sizes_weight for size, share in GUESSED_SIZES}
        if self.prior is None:
            return _Guess(self.guessed_rate * self.guess_weight, self.guess_weight, shares)
        weight = self.prior.weight_h * 3600 / self.interval_s
        own = max(0.0, self.guess_weight - weight)  # what is known takes the place of what is guessed
        expected = self.prior.events(now, self.interval_s)[sign > 0]
        sizes = self.prior.gain_sizes if sign > 0 else self.prior.loss_sizes
        known = sum(count for _, count in sizes)
        if known:
            worth = min(1.0, MOST_SIZES / known)
            own_sizes = max(0.0, 1 - worth * known / self.sizes_weight)
            shares = {size: share * own_sizes for size, share in shares.items()}
            for size, count in sizes:
                shares[_nearest(size)] = shares.get(_nearest(size), 0.0) + count * worth
        return _Guess(expected * weight + self.guessed_rate * own, weight + own, shares)

    def _by_size(self, rate: float, seen: _Seen, guess: _Guess, sign: int) -> list[Turn]:
        """Events of one kind, their rate shared out by cluster size."""
        guessed = sum(guess.sizes.values())
        turns = []
        for size, mass in seen.sizes.items():
            mass += guess.sizes.get(size, 0.0)
            chance = rate * mass / (seen.events + guessed)
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
