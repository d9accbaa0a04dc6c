"""What earlier jobs have seen of a market, and what its last minutes say."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.planning.hazard import Hazard
from runtime.planning.outlook import USUAL, Outlook, PoolMinute, learnt_rates, outlook
from runtime.planning.prior import MOST_WEIGHT_H, PriorRates, learnt, stretch_of

HOUR = 60


def minutes(first: int, last: int, **facts: Any) -> list[PoolMinute]:
    """A pool of ten instances in the minutes from `first` to before `last`."""
    facts = {"held": 10, "wanted": 10, **facts}
    return [PoolMinute(minute, "g5/a", **facts) for minute in range(first, last)]


def test_a_record_teaches_rates_per_instance_hour_and_the_sizes_of_clusters() -> None:
    """Ten instances for two hours, two lost at once and one by itself: three in twenty instance hours."""
    seen = [10] * 30 + [8] * 30 + [10] * 30 + [9] * 31
    found = learnt([stretch_of(seen)], half_life_h=1e9)
    assert found is not None
    held_h = sum(seen[:-1]) / 60
    assert found.losses_per_instance_hour == pytest.approx(3 / held_h)
    assert found.gains_per_instance_hour == pytest.approx(2 / held_h)
    assert dict(found.loss_sizes) == pytest.approx({1: 1.0, 2: 1.0})
    assert found.weight_h == pytest.approx(2.0, rel=1e-3)
    assert learnt([stretch_of([0] * 60)]) is None


def test_what_is_old_counts_for_less_and_a_long_record_for_no_more_than_some_hours() -> None:
    """Losses of a week ago hardly matter beside a quiet hour now; jobs in one pool add up."""
    old = minutes(0, HOUR, lost=1)
    quiet = minutes(7 * 24 * HOUR, 7 * 24 * HOUR + HOUR)
    found = learnt_rates(quiet + old, 7 * 24 * HOUR + HOUR)
    assert found is not None and found.losses_per_instance_hour < 0.1
    fresh = learnt_rates(old, HOUR)
    assert fresh is not None and fresh.losses_per_instance_hour == pytest.approx(6.0)
    long = learnt_rates(minutes(0, 48 * HOUR), 48 * HOUR)
    assert long is not None and long.weight_h == MOST_WEIGHT_H
    both = learnt_rates(minutes(0, HOUR, lost=1) + minutes(0, HOUR), HOUR)
    assert both is not None and both.losses_per_instance_hour == pytest.approx(3.0)


def test_a_short_record_takes_the_place_of_as_much_of_the_guess() -> None:
    """Minutes of watching change a forecast by little; hours of it replace the guess."""

    def lost(prior: PriorRates | None) -> float:
        return sum(turn.losses * turn.probability for turn in Hazard(prior=prior).turns([10]))

    quiet = learnt([stretch_of([10] * 5)])
    assert lost(None) * 0.5 < lost(quiet) < lost(None)
    assert lost(learnt([stretch_of([10] * 500)])) < 0.01 * lost(None)


def test_the_clouds_word_and_the_record_are_mixed_by_their_weights() -> None:
    """Two hours of one and two of the other: the mean; nothing said changes nothing."""
    ours, told = PriorRates(0.4, 0.2, 2.0, ((3, 1.0),)), PriorRates(0.2, 0.2, 2.0)
    mixed = ours.mixed_with(told)
    assert mixed.losses_per_instance_hour == pytest.approx(0.3)
    assert (mixed.weight_h, mixed.loss_sizes) == (4.0, ((3, 1.0),))
    assert ours.mixed_with(None) == ours


def test_without_anything_unusual_the_outlook_is_the_usual() -> None:
    """No data, launches as ever, steady prices and scores: the forecast is left alone."""
    assert outlook([], 0) == USUAL
    steady = minutes(0, 5 * HOUR, tried=1, spot_usd_per_hour=1.0, score=7.0, lost=1)
    assert outlook(steady, 5 * HOUR) == USUAL


def test_refused_launches_and_falling_scores_lower_the_expected_gains() -> None:
    """More refusals, fewer gains; they are forgotten within hours."""
    before = minutes(0, HOUR, tried=1)
    refused = outlook(before + minutes(HOUR, HOUR + 20, tried=1, refused=1), HOUR + 20)
    assert refused.gains < 0.6 and refused.losses == 1.0
    assert outlook(before + minutes(HOUR, HOUR + 20, tried=1, refused=1), 6 * HOUR).gains == 1.0
    fallen = outlook(minutes(0, HOUR, score=9.0) + minutes(HOUR, HOUR + 5, score=3.0), HOUR + 5)
    assert fallen.gains < 0.6
    gains = [
        sum(turn.gains * turn.probability for turn in Hazard(outlook=look).turns([8, 9, 8, 10, 9]))
        for look in (USUAL, Outlook(gains=0.5))
    ]
    assert gains[1] == pytest.approx(gains[0] / 2, rel=0.25)


def test_a_risen_price_raises_the_hazard_only_where_losses_came_with_it() -> None:
    """The same price, once with losses in its minutes and once without."""
    calm = minutes(0, 4 * HOUR, spot_usd_per_hour=1.0, on_demand_usd_per_hour=3.0)
    facts = {"spot_usd_per_hour": 2.0, "on_demand_usd_per_hour": 3.0}
    harmless = calm + minutes(4 * HOUR, 5 * HOUR, **facts)
    assert outlook(harmless, 5 * HOUR) == USUAL
    costly = calm + minutes(4 * HOUR, 5 * HOUR, lost=1, **facts)
    assert outlook(costly, 5 * HOUR).losses > 2
    fallen = costly + minutes(5 * HOUR, 5 * HOUR + 1, spot_usd_per_hour=1.0, on_demand_usd_per_hour=3.0)
    assert outlook(fallen, 5 * HOUR + 1) == USUAL
