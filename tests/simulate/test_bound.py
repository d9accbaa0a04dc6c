"""The bound on what a plan can expect that knows the true counts, but not who goes."""

from __future__ import annotations

from statistics import fmean

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from parcae_cli.replay_inputs import replay_setup
from runtime.planning.foresight import course_of
from runtime.planning.trace import ADD, Trace, TraceEvent, synthetic_trace
from runtime.simulate.bound import expected_bound
from runtime.simulate.replay import CONTROLLED, replay
from runtime.simulate.setup import ReplaySetup


def _setup(trace: Trace, model: str = "gpt3-6b", notice_s: float = 0.0) -> ReplaySetup:
    return replay_setup(trace, model, "artifact", "default", 60.0, 12, 12, notice_s, 0.0)


@given(
    st.lists(st.tuples(st.integers(20, 900), st.integers(1, 8)), min_size=1, max_size=6),
    st.sampled_from(["gpt3-6b", "bert-large", "vgg19"]),
)
@example([(20, 3), (20, 7), (20, 3), (144, 3)], "bert-large")
@settings(max_examples=15, deadline=None)
def test_without_losses_there_is_no_luck_and_nobody_beats_the_bound(
    arrivals: list[tuple[int, int]], model: str
) -> None:
    """Instances only come: every policy commits at most the bound, and the bound is at most ideal."""
    events, now_s, made = [], 0, 0
    for wait_s, count in arrivals:
        for _ in range(count):
            if made < 32:
                events.append(TraceEvent(float(now_s), ADD, f"n{made}"))
                made += 1
        now_s += wait_s
    setup = _setup(Trace("x", tuple(events), float(now_s)), model)
    bound = expected_bound(setup)
    assert bound is not None
    result = replay(setup, (*CONTROLLED, "ideal"))
    by_name = {policy.name: policy.samples for policy in result.policies}
    assert bound <= by_name.pop("ideal") * (1 + 1e-9)
    assert max(by_name.values()) <= bound * (1 + 1e-9)
    assert result.bound == bound


@pytest.mark.parametrize(("model", "seed"), [("gpt3-6b", 5), ("bert-large", 6)])
def test_over_many_draws_of_who_goes_no_policy_beats_the_bound(model: str, seed: int) -> None:
    """The mean over five draws, with half a percent for the luck that is left in it."""
    setup = _setup(synthetic_trace("s", seed, 1.0, 32, 24, 20.0), model)
    bound = expected_bound(setup)
    assert bound is not None
    for name in ("parcae", "parcae-oracle", "reactive"):
        mean = fmean(replay(setup.seeded(draw), (name,)).policies[0].samples for draw in range(5))
        assert 0.8 * bound < mean <= 1.005 * bound


def test_the_bound_goes_on_after_a_time_when_nothing_could_run() -> None:
    """An hour, a gap with too few instances, and another hour: both hours count."""
    rows = [TraceEvent(0.0, ADD, f"n{number:02d}") for number in range(24)]
    rows += [TraceEvent(3600.0, "kill", f"n{number:02d}") for number in range(20)]
    rows += [TraceEvent(3900.0, ADD, f"m{number:02d}") for number in range(20)]
    setup = _setup(Trace("x", tuple(rows), 7500.0))
    bound, ideal = expected_bound(setup), replay(setup, ("ideal",)).policies[0].samples
    assert bound is not None and 0.97 * ideal < bound < ideal


def test_notices_tell_who_goes_and_then_there_is_no_bound() -> None:
    """None, and none is shown."""
    setup = _setup(synthetic_trace("s", 5, 0.5, 32, 24, 20.0), notice_s=30.0)
    assert expected_bound(setup) is None and replay(setup, ("offline-optimum",)).bound is None


def test_a_course_on_which_nothing_ever_comes_has_one_step() -> None:
    """What comes and goes at one instant is no change; the time until the end is there all the same."""
    course = course_of((), 100.0)
    assert (course.times_s, course.counts) == ((0.0,), (0,))
    assert [step.span_s for step in course.steps] == [100.0]
