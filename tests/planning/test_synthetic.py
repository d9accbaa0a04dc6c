"""Made-up traces have the figures asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.planning.errors import InputError
from runtime.planning.synthetic import TraceFigures, calibrated_trace

DAY = TraceFigures(24, 32, 24, 14)
ASKED = [
    DAY,
    TraceFigures(168, 32, 24, 14, lattice_s=300),
    TraceFigures(24, 80, 40, 30, mean_cluster=3),
    TraceFigures(6, 16, 8, 30, mean_cluster=1.5, lattice_s=30),
    TraceFigures(48, 32, 20, 1, 1.2, mean_cluster=1.5, lattice_s=600),
]


@pytest.mark.parametrize("figures", ASKED, ids=["day", "week", "large", "dense", "slow and rising"])
def test_long_traces_have_the_figures_asked_for(figures: TraceFigures) -> None:
    """Over seeds: the mean within 3 %, losses and gains within 6 % or two instances, clusters within 8 %."""
    for seed in range(6):
        seen = calibrated_trace("s", seed, figures).statistics
        assert seen.max_available <= figures.max_available and seen.hours == figures.hours
        assert seen.mean_available == pytest.approx(figures.mean_available, rel=0.03)
        room = 2.0 / figures.hours
        assert seen.losses_per_hour == pytest.approx(figures.losses_per_hour, rel=0.06, abs=room)
        assert seen.gains_per_hour == pytest.approx(figures.gains, rel=0.06, abs=room)
        assert seen.mean_cluster == pytest.approx(figures.mean_cluster, rel=0.08)


@pytest.mark.parametrize(
    "figures",
    [TraceFigures(1, 32, 27.05, 19, 16, 2.1), TraceFigures(1, 32, 14.6, 4, 0, 1.33)],
    ids=["HADP", "LASP"],
)
def test_an_hour_like_the_papers_segments_is_nearly_so(figures: TraceFigures) -> None:
    """With few events chance leaves less choice: twice as far off at most."""
    for seed in range(6):
        seen = calibrated_trace("s", seed, figures).statistics
        assert seen.mean_available == pytest.approx(figures.mean_available, rel=0.06)
        assert seen.preempted == pytest.approx(figures.losses_per_hour, abs=4)
        assert seen.allocated == pytest.approx(figures.gains, abs=4)
        assert seen.mean_cluster == pytest.approx(figures.mean_cluster, rel=0.16)


@given(
    st.integers(0, 10_000),
    st.integers(1, 40),
    st.floats(0.05, 1),
    st.floats(0, 40),
    st.floats(0, 40),
    st.floats(1, 6),
)
@settings(max_examples=40, deadline=None)
def test_whatever_is_asked_for_is_made_or_refused(
    seed: int, most: int, share: float, losses: float, gains: float, cluster: float
) -> None:
    """Never more than the most, never below none, the same for the same seed; or a reason."""
    figures = TraceFigures(1.0, most, share * most, losses, gains, cluster)
    try:
        made = calibrated_trace("s", seed, figures)
    except InputError:
        return
    assert made == calibrated_trace("s", seed, figures)
    levels = [count for _, count in made.counts]
    assert min(levels) >= 0 and max(levels) <= most


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean_available": 40}, "a mean of 40 instances must be above 0 and at most the most at once, 32"),
        ({"mean_available": 32}, "the mean of 32 must be below the most"),
        ({"gains_per_hour": 9}, "take availability from 84 to -36; it must stay within 0 and 32"),
        ({"mean_cluster": 50}, "50 instances cannot go at once"),
        ({"losses_per_hour": 500}, "ask for larger clusters or a finer lattice"),
    ],
)
def test_figures_that_cannot_go_together_are_refused(change: dict[str, float], said: str) -> None:
    """With the arithmetic."""
    with pytest.raises(InputError, match=said):
        calibrated_trace("s", 1, replace(DAY, **change))  # type: ignore[arg-type]
