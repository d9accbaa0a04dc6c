"""From the situation to a verdict: which layout next, by which policy, and why, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from runtime.planning.costs import Change, Cost, CostModel
from runtime.planning.forecast import Forecast, Forecaster
from runtime.planning.foresight import Foresight
from runtime.planning.horizon import beyond, steps_of
from runtime.planning.migration import sketch_change
from runtime.planning.plan import Option, choose
from runtime.planning.profile import Profile
from runtime.planning.programme import Programme
from runtime.planning.types import Layout, MigrationKind

SHELF = 16  # availabilities that share tables
MOST_SHELVES = 64  # tables kept at once
MOST_LAYOUTS = 32  # that one decision weighs against each other


@dataclass(frozen=True)
class Situation:
    """Where a job stands when something has to be decided.

    `survivors[p]` nodes hold stage p of `layout`, the last live one. `running`: it still trains. `can_stay`:
    doing nothing is possible. `noticed`: no step in flight is lost by changing now.
    """

    usable: int
    layout: Layout | None
    survivors: tuple[int, ...]
    lost_positions: int
    running: bool
    can_stay: bool
    pending: Layout | None
    pending_left: Cost
    noticed: bool
    started: bool


@dataclass(frozen=True)
class Verdict:
    """The layout to go to (None: nothing fits), or to stay with."""

    layout: Layout | None
    stay: bool
    why: str
    forecast: tuple[float, ...]
    liveput: float


@dataclass(frozen=True)
class Planner:
    """How verdicts are reached: everything that does not change while a job runs."""

    profile: Profile
    costs: CostModel
    forecaster: Forecaster
    interval_s: float
    lookahead: int
    max_nodes: int
    foresight: Foresight | None = None
    looks_ahead: bool = True
    gpus: int = 1  # of an instance; availability, losses and gains are instances

    def decide(self, situation: Situation, history: Sequence[int], now_s: float) -> Verdict:
        """What to do in `situation`; `history` ends with the availability now."""
        forecast = self.forecaster.forecast(history, self.lookahead, now_s)
        current = situation.pending or situation.layout
        feasible = self.profile.feasible(situation.usable * self.gpus)
        if not feasible and not situation.can_stay:
            why = self.profile.why_nothing_fits(situation.usable, self.gpus)
            return Verdict(None, False, why, forecast.mean, 0.0)
        if not self.looks_ahead:
            return self._fastest(situation, forecast)
        programme = self._programme(situation.usable, current)
        options = [
            Option(layout, self.first_cost(situation, layout))
            for layout in programme.layouts
            if layout.positions <= situation.usable * self.gpus
            and not (situation.can_stay and layout == current)
        ]
        if situation.can_stay:
            assert current is not None
            options.append(Option(current, situation.pending_left, stay=True))
        return self._best(programme, situation, forecast, options, now_s)

    def _fastest(self, situation: Situation, forecast: Forecast) -> Verdict:
        best = self.profile.best(situation.usable * self.gpus)
        current = situation.pending or situation.layout
        if situation.can_stay and (best is None or best == current):
            assert current is not None
            rate = self.profile.samples_per_s(current)
            return Verdict(current, True, f"{current} is the fastest", forecast.mean, rate)
        assert best is not None
        why = f"{best} is the fastest for {situation.usable} nodes"
        return Verdict(best, False, why, forecast.mean, self.profile.samples_per_s(best))

    @cached_property
    def _programmes(self) -> dict[tuple[int, Layout | None], Programme]:
        return {}

    def _programme(self, usable: int, current: Layout | None) -> Programme:
        """The tables for about so many nodes: of the layouts that could matter there, and the current one."""
        if self.foresight is not None:
            return self.foresight.programme
        shelf = usable // SHELF
        for key in ((shelf, None), (shelf, current)):
            kept = self._programmes.get(key)
            if kept is not None and (current is None or current in kept.index):
                return kept
        low, high = SHELF * shelf - SHELF // 2, SHELF * (shelf + 1) + SHELF // 2
        layouts = self.profile.contenders(low, min(high, self.max_nodes), MOST_LAYOUTS, self.gpus)
        key = (shelf, None)
        if current is not None and current not in layouts:
            layouts, key = (*layouts, current), (shelf, current)
        if len(self._programmes) >= MOST_SHELVES:
            self._programmes.clear()
        self._programmes[key] = Programme(self.profile, self.costs, layouts, self.max_nodes, gpus=self.gpus)
        return self._programmes[key]

    def _best(
        self,
        programme: Programme,
        situation: Situation,
        forecast: Forecast,
        options: Sequence[Option],
        now_s: float,
    ) -> Verdict:
        span_s = self.interval_s
        if self.foresight is not None:
            span_s, ahead = self.foresight.ahead(now_s)
            horizon_s = self.foresight.left_s(now_s)
        else:
            steps = steps_of(beyond(forecast.turns[: self.lookahead - 1]), self.interval_s)
            ahead = programme.values(steps, situation.usable)
            horizon_s = span_s + sum(step.span_s for step in steps)

        def worth(layout: Layout, owed_s: float) -> float:
            return ahead.of(programme.index[layout], owed_s)

        running = situation.layout if situation.running else None
        choice = choose(self.profile, options, running, span_s, worth, horizon_s)
        layout = choice.option.layout
        if choice.option.stay:
            why = f"{layout} stays: no change is worth its cost"
        else:
            why = (
                f"{layout} on {situation.usable} nodes, {self.profile.samples_per_s(layout):.4g} samples/s, "
                f"{max(0.0, choice.liveput):.4g} expected"
            )
        return Verdict(layout, choice.option.stay, why, forecast.mean, choice.liveput)

    def first_cost(self, situation: Situation, layout: Layout) -> Cost:
        """What going from the situation to `layout` costs, from counts alone."""
        if not situation.started or situation.layout is None:
            start = Change(MigrationKind.START, None, layout, fresh_nodes=layout.positions, noticed=True)
            return self.costs.cost(self.profile, start)
        change = sketch_change(
            self.profile,
            situation.layout,
            situation.survivors,
            situation.lost_positions,
            layout,
            situation.noticed,
        )
        return self.costs.cost(self.profile, change)

    def warm_up(self, usable: int) -> None:
        """Make the tables for about so many nodes now, off the path of a decision."""
        if self.looks_ahead:
            forecast = self.forecaster.forecast((usable, usable - 1, usable), self.lookahead, 0.0)
            steps = steps_of(beyond(forecast.turns[: self.lookahead - 1]), self.interval_s)
            self._programme(usable, None).values(steps, usable)
