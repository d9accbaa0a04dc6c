"""The dynamic programme behind a plan."""

from __future__ import annotations

from itertools import product
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.planning.errors import InputError
from runtime.planning.forecast import QUIET, LastValue, Oracle, Turn, path_forecast
from runtime.planning.forecasters import FORECASTERS, forecaster_named
from runtime.planning.hazard import Hazard
from runtime.planning.horizon import Step, steps_of
from runtime.planning.prior import PriorRates
from runtime.planning.programme import Programme
from runtime.planning.types import Layout
from tests.planning.fixtures import tables


def _programme(model: str = "gpt3-6b", costs: str = "artifact", nodes: int = 32) -> Programme:
    profile, cost_model = tables(model, costs, nodes)
    return Programme(profile, cost_model, profile.feasible(nodes), nodes)


def test_quiet_steps_are_worth_their_time() -> None:
    """When nothing happens the best layout is worth its rate times the time, less nothing."""
    programme = _programme()
    best = int(np.argmax(programme.rate))
    value = programme.values([Step(QUIET, 600.0)], 32).ready
    assert value[best] == pytest.approx(programme.rate[best] * 600)
    assert (value <= value[best] + 1e-9).all()


def test_the_value_is_the_best_plan_of_all_when_losses_are_sure() -> None:
    """With gains only, nothing is left to chance: the programme finds what trying every sequence finds."""
    programme = _programme()
    profile, _ = tables("gpt3-6b", "artifact", 32)
    steps = [Step((Turn(0, gain, 1.0),), 60.0) for gain in (6, 0, 4)]
    counts = (22, 22, 26)
    start = programme.layouts[0]
    best = -np.inf
    for path in product(programme.layouts, repeat=3):
        total, before = 0.0, start
        for layout, count in zip(path, counts, strict=True):
            if layout.positions > count:
                break
            total += profile.samples_per_s(layout) * (60 - programme.cost(before, layout, 0).total_s)
            before = layout
        else:
            best = max(best, total)
    assert programme.values(steps, 16).ready[0] == pytest.approx(best)


def test_what_is_left_of_a_change_is_carried_into_the_next_step() -> None:
    """Steps shorter than a change: the rest of it is paid later, at any layout; a slow one is no discount."""
    programme = _programme()
    profile, _ = tables("gpt3-6b", "artifact", 32)
    span_s, start = 10.0, programme.layouts[0]

    def follow(path: tuple[Layout, ...], owed_s: float = 0.0) -> float:
        total, before = 0.0, start
        for layout in path:
            owed_s += programme.cost(before, layout, 0).total_s
            total += profile.samples_per_s(layout) * max(0.0, span_s - owed_s)
            owed_s, before = max(0.0, owed_s - span_s), layout
        return total

    steps = [Step((Turn(0, 0, 1.0),), span_s)] * 30
    worth = programme.values(steps, 26)
    fitting = [layout for layout in programme.layouts if layout.positions <= 26]
    best = max(follow((layout,) * 30) for layout in fitting)
    assert worth.ready[0] == pytest.approx(best, rel=0.01)
    best = max(follow((layout,) * 30, 30.0) for layout in fitting)
    assert worth.of(0, 30.0) == pytest.approx(best, rel=0.01)
    assert worth.owing[0] < worth.ready[0]


@given(st.integers(12, 31), st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_a_plan_with_more_nodes_is_never_worse(nodes: int, losses: int, gains: int) -> None:
    """One more instance, the same losses and gains: no layout is worth less."""
    programme = _programme()
    steps = [Step((Turn(losses, 0, 0.3), Turn(0, gains, 0.3), Turn(0, 0, 0.4)), 60.0)] * 3
    fewer, more = programme.values(steps, nodes).ready, programme.values(steps, nodes + 1).ready
    fits = np.array([layout.positions <= nodes for layout in programme.layouts])
    assert (more[fits] >= fewer[fits] - 1e-6).all()


@given(st.integers(14, 32), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_more_losses_are_never_worth_more(nodes: int, losses: int) -> None:
    """Whatever runs, one more loss ahead does not raise its value."""
    programme = _programme()
    few = programme.values([Step((Turn(losses, 0, 1.0),), 60.0)], nodes).ready
    more = programme.values([Step((Turn(losses + 1, 0, 1.0),), 60.0)], nodes).ready
    fits = np.array([layout.positions <= nodes for layout in programme.layouts])
    assert (more[fits] <= few[fits] + 1e-6).all()


turns = st.sampled_from(
    [
        (Turn(0, 0, 0.7), Turn(2, 0, 0.2), Turn(0, 2, 0.1)),
        (Turn(0, 0, 0.4), Turn(1, 0, 0.3), Turn(0, 3, 0.3)),
        (Turn(3, 0, 0.5), Turn(0, 1, 0.5)),
        (Turn(0, 0, 1.0),),
    ]
)


@given(st.lists(turns, min_size=1, max_size=3), st.integers(15, 30), st.sampled_from(["gpt3-6b", "vgg19"]))
@settings(max_examples=30, deadline=None)
def test_a_plan_never_beats_the_one_that_knows_what_will_come(
    story: list[tuple[Turn, ...]], nodes: int, model: str
) -> None:
    """The value under a distribution is at most the mean over what may happen of the value when it is known.

    And the two are one where nothing is left to chance.
    """
    programme = _programme(model)
    with patch("runtime.planning.programme.REACH", 32):  # availability is followed wherever it goes
        blind = programme.values([Step(turns, 120.0) for turns in story], nodes).ready
    knowing = np.zeros_like(blind)
    for path in product(*story):
        chance = float(np.prod([turn.probability for turn in path]))
        sure = [Step((Turn(turn.losses, turn.gains, 1.0),), 120.0) for turn in path]
        knowing += chance * programme.values(sure, nodes).ready
    fits = np.array([layout.positions <= nodes for layout in programme.layouts])
    assert (blind[fits] <= knowing[fits] + 1e-6).all()
    if all(len(turns) == 1 for turns in story):
        assert blind[fits] == pytest.approx(knowing[fits])


def test_staying_costs_nothing() -> None:
    """No loss and no change of layout: nothing to pay."""
    programme = _programme("bert-large")
    for layout in programme.layouts:
        assert programme.cost(layout, layout, 0).total_s == 0


def test_merging_intervals_keeps_their_time_and_chances() -> None:
    """Alike intervals become fewer and longer steps, as long in all, and a merged step is a distribution."""
    turns = (Turn(0, 0, 0.9), Turn(1, 0, 0.06), Turn(0, 1, 0.04))
    steps = steps_of([turns] * 11, 60.0)
    assert len(steps) < 7 and sum(step.span_s for step in steps) == pytest.approx(660)
    for step in steps:
        assert sum(turn.probability for turn in step.turns) == pytest.approx(1)
    path = path_forecast(5, [5, 5, 3, 3, 4]).turns
    assert [step.span_s for step in steps_of(path, 60.0)] == [120.0, 120.0, 60.0]


histories = st.lists(st.integers(0, 40), min_size=1, max_size=60)


@pytest.mark.parametrize("name", sorted(FORECASTERS))
@given(history=histories, horizon=st.integers(1, 14))
@settings(max_examples=15, deadline=None)
def test_every_forecast_is_a_distribution(name: str, history: list[int], horizon: int) -> None:
    """As many intervals as asked for, chances that sum to one, nothing negative."""
    forecast = forecaster_named(name).forecast(history, horizon, 0.0)
    assert len(forecast.turns) == len(forecast.mean) == horizon
    for turns in forecast.turns:
        assert sum(turn.probability for turn in turns) == pytest.approx(1)
        assert all(turn.probability >= 0 and turn.losses >= 0 and turn.gains >= 0 for turn in turns)
    assert min(forecast.mean) >= 0


def test_the_papers_forecaster_keeps_to_its_guards() -> None:
    """A steep fall is not drawn out for ever: at most three from the first interval's forecast."""
    mean = forecaster_named("arima").forecast([32, 30, 27, 23, 18, 14], 12, 0.0).mean
    assert max(mean) - min(mean) <= 6 and min(mean) >= 0
    assert forecaster_named("arima").forecast([7] * 12, 3, 0.0).mean == (7, 7, 7)


def test_the_oracle_tells_the_truth() -> None:
    """From the interval after now, and the last for ever."""
    oracle = Oracle((4, 5, 6, 2), 60.0)
    assert oracle.forecast([5], 4, 60.0).mean == (6, 2, 2, 2)
    assert oracle.forecast([5], 1, 60.0).turns == ((Turn(0, 1, 1.0),),)


def test_last_value_and_hazard_by_hand() -> None:
    """Nothing happens; or what happened lately happens again."""
    assert LastValue().forecast([3, 9], 2, 0.0).mean == (9, 9)
    calm, rough = Hazard().turns([9] * 300), Hazard().turns([9, 8, 9, 7] * 75)
    assert calm[0].probability > rough[0].probability


def test_an_unknown_forecaster_is_refused_with_those_there_are() -> None:
    """By name."""
    with pytest.raises(InputError, match="no forecaster 'crystal'; there are"):
        forecaster_named("crystal")


def test_what_the_cloud_says_counts_until_enough_was_seen() -> None:
    """A prior's losses are forecast at once; hours of quiet outweigh it, and other forecasters ignore it."""

    def losses(history: list[int], prior: PriorRates | None) -> float:
        made = forecaster_named("hazard", prior)
        assert isinstance(made, Hazard)
        return sum(turn.losses * turn.probability for turn in made.turns(history))

    rough = PriorRates(losses_per_instance_hour=0.5, gains_per_instance_hour=0.1, weight_h=2.0)
    assert losses([10], rough) == pytest.approx(0.5 * 10 / 60, rel=0.35)  # four sizes only, and rounded
    assert losses([10] * 600, rough) < losses([10], rough) / 1.5
    assert losses([10], PriorRates(0.0, 0.0, 2.0)) < 1e-6
    assert forecaster_named("last-value", rough) == LastValue()
