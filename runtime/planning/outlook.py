"""What a market's record says of the next minutes: how far gains and losses are from their usual rates.

Each figure is a ratio of events seen to events expected, of which a Gamma distribution with the mean 1 and
a weight of so many events is known beforehand: its mean is `(weight + seen) / (weight + expected)`, so
without data it is 1.

- **Gains**: launches granted lately (decayed by half every LATELY_H hours) beside those that would have
  been granted at the record's usual share; and the newest placement score beside the record's mean. Both
  only ever lower the expected gains: that more will come is seen soon enough when it comes.
- **Losses**: where the spot price of a pool (relative to on demand, where that is known) is above its own
  mean by more than RISEN: losses of the record's minutes with such a price, beside those expected of as
  many instance hours at the record's common rate. Only then, and only upwards: a price says nothing until
  the data does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.planning.prior import HALF_LIFE_H, PriorRates, Stretch, learnt

LATELY_H = 0.25
RISEN = 1.1  # times the pool's mean price
LAUNCHES, LOSSES = 3.0, 5.0  # events that speak for the usual
LOWEST, HIGHEST = 0.1, 4.0
# A factor is one of these, so that the planner's tables can be kept.
STEPS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)


@dataclass(frozen=True, slots=True)
class PoolMinute:
    """One pool in one minute, `minute` counted from any origin.

    `held` instances were there, `wanted` by the whole job; the cloud took `lost` and gave `came`. Of `tried`
    launches `refused` brought nothing. Prices in USD an hour, 0: unknown; `score` is the cloud's own, None:
    unknown.
    """

    minute: int
    pool: str
    held: int = 0
    wanted: int = 0
    lost: int = 0
    came: int = 0
    tried: int = 0
    refused: int = 0
    spot_usd_per_hour: float = 0.0
    on_demand_usd_per_hour: float = 0.0
    score: float | None = None

    @property
    def price(self) -> float:
        """Relative to on demand, where that is known."""
        return self.spot_usd_per_hour / (self.on_demand_usd_per_hour or 1.0)


@dataclass(frozen=True)
class Outlook:
    """How many times as many gains and losses are to be expected as usual."""

    gains: float = 1.0
    losses: float = 1.0


USUAL = Outlook()


def ratio(seen: float, expected: float, weight: float) -> float:
    """How many times as many events as expected there are; 1 without data."""
    return (weight + seen) / (weight + expected)


def stretches(minutes: Sequence[PoolMinute], now_minute: int) -> list[Stretch]:
    """A record, of any order, as stretches of minutes that follow each other in one pool.

    Minutes of several jobs in one pool are added up.
    """
    runs: list[list[PoolMinute]] = []
    for one in sorted(minutes, key=lambda one: (one.pool, one.minute)):
        last = runs[-1][-1] if runs else None
        if last is not None and (last.pool, last.minute) == (one.pool, one.minute):
            runs[-1][-1] = PoolMinute(
                one.minute, one.pool, last.held + one.held, 0, last.lost + one.lost, last.came + one.came
            )
        elif last is not None and (last.pool, last.minute + 1) == (one.pool, one.minute):
            runs[-1].append(one)
        else:
            runs.append([one])
    return [
        Stretch(
            [one.held for one in run],
            [one.lost for one in run],
            [one.came for one in run],
            ended_h=max(0, now_minute - run[-1].minute) / 60,
        )
        for run in runs
    ]


def learnt_rates(minutes: Sequence[PoolMinute], now_minute: int) -> PriorRates | None:
    """The prior that a record speaks for; None where no instance was watched."""
    return learnt(stretches(minutes, now_minute))


def outlook(minutes: Sequence[PoolMinute], now_minute: int) -> Outlook:
    """What the record of a job's pools, its own minutes included, says of the next minutes."""
    granted = asked = usual_granted = usual_asked = 0.0
    for one in minutes:
        if not one.tried:
            continue
        age_h = max(0, now_minute - one.minute) / 60
        soon, late = 0.5 ** (age_h / LATELY_H), 0.5 ** (age_h / HALF_LIFE_H)
        granted, asked = granted + soon * (one.tried - one.refused), asked + soon * one.tried
        usual_granted += late * (one.tried - one.refused)
        usual_asked += late * one.tried
    usual = ratio(usual_granted, usual_asked, LAUNCHES)
    gains = ratio(granted, usual * asked, LAUNCHES) * _score(minutes)
    return Outlook(_step(min(1.0, gains)), _step(max(1.0, _price(minutes))))


def _score(minutes: Sequence[PoolMinute]) -> float:
    """The newest scores beside the mean of all, the mean over the pools that have any."""
    by_pool: dict[str, list[tuple[int, float]]] = {}
    for one in minutes:
        if one.score is not None:
            by_pool.setdefault(one.pool, []).append((one.minute, one.score))
    ratios = [
        max(found)[1] / mean
        for found in by_pool.values()
        if (mean := sum(score for _, score in found) / len(found)) > 0
    ]
    return sum(ratios) / len(ratios) if ratios else 1.0


def _price(minutes: Sequence[PoolMinute]) -> float:
    """How many times as many losses come where prices have risen: the mean over what is held now."""
    factors: list[tuple[float, int]] = []
    by_pool: dict[str, list[PoolMinute]] = {}
    for one in minutes:
        if one.price > 0:
            by_pool.setdefault(one.pool, []).append(one)
    for rows in by_pool.values():
        mean = sum(one.price for one in rows) / len(rows)
        newest = max(rows, key=lambda one: one.minute)
        held = sum(one.held for one in rows)
        if not held or newest.price <= RISEN * mean:
            factors.append((1.0, newest.held))
            continue
        risen = [one for one in rows if one.price > RISEN * mean]
        expected = sum(one.lost for one in rows) / held * sum(one.held for one in risen)
        factors.append((ratio(sum(one.lost for one in risen), expected, LOSSES), newest.held))
    weight = sum(held for _, held in factors)
    return sum(factor * held for factor, held in factors) / weight if weight else 1.0


def _step(factor: float) -> float:
    factor = min(max(factor, LOWEST), HIGHEST)
    return min(STEPS, key=lambda step: max(step / factor, factor / step))
