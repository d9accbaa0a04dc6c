"""Forecasters against each other: by what a job commits with them, and by how well they foretell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from runtime.planning.forecast import Forecaster
from runtime.planning.forecasters import FORECASTERS, forecaster_named
from runtime.simulate.replay import replay
from runtime.simulate.setup import ReplaySetup


@dataclass(frozen=True)
class ForecasterScore:
    """How one forecaster fared.

    `l1_percent`: mean absolute error over mean availability, over the look-ahead. `drop_recall`: of the
    intervals before which availability fell, the share whose forecast, one interval ahead, saw a fall as
    likely as not.
    """

    name: str
    samples: float
    percent_of_ideal: float
    l1_percent: float
    drop_recall: float


def compare_forecasters(
    setup: ReplaySetup, progress: Callable[[str, float], None] | None = None
) -> tuple[ForecasterScore, ...]:
    """Every forecaster on one trace, the best first."""
    scores = []
    for name in FORECASTERS:
        forecaster = forecaster_named(name)
        run = replay(replace(setup, forecaster=forecaster), ("parcae",)).policies[0]
        l1_percent, recall = _accuracy(setup, forecaster)
        scores.append(ForecasterScore(name, run.samples, run.percent_of_ideal, l1_percent, recall))
        if progress is not None:
            progress(name, 1.0)
    return tuple(sorted(scores, key=lambda score: (-score.samples, score.name)))


def _accuracy(setup: ReplaySetup, forecaster: Forecaster) -> tuple[float, float]:
    path = setup.trace.interval_counts(setup.interval_s)
    errors: list[float] = []
    drops, seen = 0, 0
    for index in range(len(path) - 1):
        forecast = forecaster.forecast(path[: index + 1], setup.lookahead, index * setup.interval_s)
        ahead = path[index + 1 : index + 1 + setup.lookahead]
        errors += [abs(mean - true) for mean, true in zip(forecast.mean, ahead, strict=False)]
        if path[index + 1] < path[index]:
            drops += 1
            fall = sum(turn.probability for turn in forecast.turns[0] if turn.losses > turn.gains)
            seen += fall >= 0.5
    mean = fmean(path) if path else 0.0
    return (100 * fmean(errors) / mean if errors and mean else 0.0), (seen / drops if drops else 0.0)
