"""The hazard model: losses and gains come at the rates seen lately, in clusters of the sizes seen lately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log

from runtime.planning.forecast import Forecast, Turn
from runtime.planning.prior import PriorRates

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # clusters are counted as the nearest of these
GUESSED_SIZES = ((1, 0.5), (2, 0.25), (3, 0.15), (4, 0.1))  # before anything was seen
ROUNDING = 5  # rates are kept to 1 in so many of a factor e


@dataclass(frozen=True)
class Hazard:
    """Losses and gains come at the rates seen lately, in clusters of the sizes seen lately.

    An interval of the past weighs half as much every `half_life` intervals. What was seen is mixed with a
    guess of `guessed_rate` events an interval, which weighs `guess_weight` intervals, or with a `prior` where
    there is one. Rates are rounded to steps of some percent, so that tables can be kept.
    """

    half_life: float = 120.0
    guess_weight: float = 20.0
    guessed_rate: float = 0.07
    sizes_weight: float = 2.0
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
        seen: dict[int, float] = {}
        changes = [after - before for before, after in pairwise(history)]
        for change in reversed(changes):
            if change:
                seen[change] = seen.get(change, 0.0) + weight
            total += weight
            weight *= decay
        guess, guess_weight = (self.guessed_rate, self.guessed_rate), self.guess_weight
        if self.prior is not None:
            guess = self.prior.events(history[-1] if history else 0, self.interval_s)
            guess_weight = self.prior.weight_h * 3600 / self.interval_s
        result: list[Turn] = []
        for sign, guessed in zip((-1, 1), guess, strict=True):
            masses = dict.fromkeys(SIZES, 0.0)
            for change, mass in seen.items():
                if change * sign > 0:
                    masses[min(SIZES, key=lambda size: abs(size - abs(change)))] += mass
            events = sum(masses.values())
            rate = (events + guessed * guess_weight) / (total + guess_weight)
            for size, share in GUESSED_SIZES:
                masses[size] += share * self.sizes_weight
            for size, mass in masses.items():
                chance = rate * mass / (events + self.sizes_weight)
                if chance > 1e-4:
                    chance = exp(round(log(chance) * ROUNDING) / ROUNDING)
                    result.append(Turn(size if sign < 0 else 0, size if sign > 0 else 0, chance))
        quiet = 1.0 - sum(turn.probability for turn in result)
        if quiet < 0.05:
            scale = 0.95 / (1 - quiet)
            result = [Turn(turn.losses, turn.gains, turn.probability * scale) for turn in result]
            quiet = 1.0 - sum(turn.probability for turn in result)
        return (Turn(0, 0, quiet), *result)
