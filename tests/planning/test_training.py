"""The learning rate of a step, and which steps evaluate."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.planning.training import TrainingSpec


def spec(schedule: str, warmup: int = 10, decay: int = 110, least: float = 0.1) -> TrainingSpec:
    """A peak of 1."""
    return TrainingSpec(
        8, 2, 1.0, schedule=schedule, warmup_steps=warmup, decay_steps=decay, min_learning_rate=least
    )


def test_a_schedule_by_hand() -> None:
    """Linear warm-up to the peak; half-way down after half the decay; the least from decay_steps on."""
    for schedule in ("linear", "cosine"):
        rate = spec(schedule).learning_rate_at
        assert [rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
        assert [rate(step) for step in (60, 110, 10**9)] == pytest.approx([0.55, 0.1, 0.1])
    assert spec("linear").learning_rate_at(35) == pytest.approx(0.775)
    assert spec("cosine").learning_rate_at(35) == pytest.approx(0.1 + 0.9 * (0.5 + 0.5**1.5))


def test_a_constant_rate_is_the_template_s_to_the_bit() -> None:
    """After the warm-up, if there is one, no arithmetic touches it."""
    assert TrainingSpec(8, 2, 1e-3).learning_rate_at(0) == 1e-3
    assert TrainingSpec(8, 2, 1e-3, warmup_steps=3).learning_rate_at(3) == 1e-3


@given(st.sampled_from(["linear", "cosine"]), st.integers(0, 50), st.integers(1, 100), st.floats(0, 1))
def test_a_rate_rises_then_falls_and_stays_within_bounds(
    schedule: str, warmup: int, fall: int, least: float
) -> None:
    """For any warm-up, length and least rate."""
    training = spec(schedule, warmup, warmup + fall, least)
    rates = [training.learning_rate_at(step) for step in range(warmup + fall + 3)]
    assert all(a <= b for a, b in pairwise(rates[: warmup + 1]))
    assert all(a >= b for a, b in pairwise(rates[warmup:]))
    assert rates[warmup] == pytest.approx(1.0) and rates[-1] == least
    assert all(0 < rate <= 1 + 1e-12 for rate in rates[:warmup])


def test_evaluation_holds_samples_out_only_where_it_takes_place() -> None:
    """Every third step's end, and nothing is held out without it."""
    every = TrainingSpec(8, 2, eval_every=3, eval_samples=4)
    assert [step for step in range(9) if every.evaluates(step)] == [2, 5, 8]
    never = TrainingSpec(8, 2, eval_samples=4)
    assert (every.held_out, never.held_out, never.evaluates(2)) == (4, 0, False)
