"""What availability will be: a forecaster turns the past into a distribution of what each interval brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Turn:
    """One thing an interval may bring: so many instances lost and gained, with this probability."""

    losses: int
    gains: int
    probability: float


QUIET = (Turn(0, 0, 1.0),)


@dataclass(frozen=True)
class Forecast:
    """`turns[h]` is the distribution of interval h + 1 from now; `mean[h]` the availability at its end."""

    turns: tuple[tuple[Turn, ...], ...]
    mean: tuple[float, ...]


class Forecaster(Protocol):
    """Predicts from the availability of past intervals, oldest first, the last being now."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        ...

    def forecast(self, history: Sequence[int], horizon: int, now_s: float) -> Forecast:
        """The next `horizon` intervals."""
        ...


def path_forecast(now: int, path: Sequence[int]) -> Forecast:
    """A forecast that is sure of itself: availability will be `path`."""
    turns = []
    for value in path:
        turns.append((Turn(max(0, now - value), max(0, value - now), 1.0),))
        now = value
    return Forecast(tuple(turns), tuple(float(value) for value in path))


@dataclass(frozen=True)
class LastValue:
    """Availability stays as it is."""

    name: str = "last-value"

    def forecast(self, history: Sequence[int], horizon: int, now_s: float) -> Forecast:
        """See `Forecaster`."""
        now = history[-1] if history else 0
        return Forecast((QUIET,) * horizon, (float(now),) * horizon)


@dataclass(frozen=True)
class Oracle:
    """Knows the truth: `path[i]` is the availability of interval i, which begins at i x interval_s."""

    path: tuple[int, ...]
    interval_s: float
    name: str = "oracle"

    def forecast(self, history: Sequence[int], horizon: int, now_s: float) -> Forecast:
        """See `Forecaster`."""
        index = int(now_s // self.interval_s)
        now = history[-1] if history else 0
        ahead = list(self.path[index + 1 : index + 1 + horizon])
        ahead += [ahead[-1] if ahead else now] * (horizon - len(ahead))
        return path_forecast(now, ahead)
