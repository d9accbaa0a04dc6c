"""A running job corrects its profile."""

from __future__ import annotations

import pytest

from runtime.control.training.observed import LEAST_STEPS, StepTimes
from runtime.planning.controller import ControllerConfig
from runtime.planning.types import Layout
from tests.planning.fixtures import tables

SEEN = Layout(1, 13)


def _config() -> ControllerConfig:
    profile, costs = tables("gpt3-6b", "artifact", 32)
    return ControllerConfig(profile=profile, costs=costs)


def test_plans_are_made_with_the_step_times_that_are_seen() -> None:
    """Some steps take twice the expected time: that layout takes what was seen, others twice theirs."""
    config = _config()
    times = StepTimes(config.profile)
    expected_s = config.profile.iteration_s[SEEN]
    for _ in range(LEAST_STEPS):
        assert times.corrected(config) is config
        times.note(SEEN, 2 * expected_s)
    corrected = times.corrected(config)
    assert corrected.profile.iteration_s[SEEN] == pytest.approx(2 * expected_s)
    other = Layout(2, 12)
    assert corrected.profile.iteration_s[other] == pytest.approx(2 * config.profile.iteration_s[other])
    assert times.corrected(corrected) is corrected


def test_what_is_as_expected_changes_nothing() -> None:
    """A few percent are noise; and a job that learns nothing keeps its profile."""
    config = _config()
    near, none = StepTimes(config.profile), StepTimes(None)
    for _ in range(LEAST_STEPS):
        near.note(SEEN, 1.05 * config.profile.iteration_s[SEEN])
        none.note(SEEN, 9.0 * config.profile.iteration_s[SEEN])
    assert near.corrected(config) is config and none.corrected(config) is config
