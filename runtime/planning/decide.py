"""From the situation to a verdict: which layout next, by which policy, and why, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.planning.costs import Change, Cost, CostModel
from runtime.planning.forecast import Forecaster
from runtime.planning.migration import sketch_change
from runtime.planning.plan import Option, choose
from runtime.planning.profile import Profile
from runtime.planning.programme import Programme, steps_of
from runtime.planning.types import Layout, MigrationKind


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


def decide(
    profile: Profile,
    costs: CostModel,
    programme: Programme,
    policy: str,
    forecaster: Forecaster,
    situation: Situation,
    history: Sequence[int],
    interval_s: float,
    lookahead: int,
    now_s: float,
) -> Verdict:
    """The verdict of `policy`; `history` ends with the availability now."""
    forecast = forecaster.forecast(history, lookahead, now_s)
    feasible = profile.feasible(situation.usable)
    if not feasible and not situation.can_stay:
        return Verdict(None, False, profile.why_nothing_fits(situation.usable), forecast.mean, 0.0)
    options = [
        Option(layout, first_cost(profile, costs, situation, layout))
        for layout in feasible
        if not (situation.can_stay and layout == (situation.pending or situation.layout))
    ]
    if situation.can_stay:
        current = situation.pending or situation.layout
        assert current is not None
        options.append(Option(current, situation.pending_left, stay=True))
    if policy == "reactive":
        best = profile.best(situation.usable)
        current = next((option.layout for option in options if option.stay), None)
        if best is None or best == current:
            assert current is not None
            return Verdict(
                current, True, f"{current} is the fastest", forecast.mean, profile.samples_per_s(current)
            )
        return Verdict(
            best,
            False,
            f"{best} is the fastest for {situation.usable} nodes",
            forecast.mean,
            profile.samples_per_s(best),
        )
    steps = steps_of(forecast.turns[: lookahead - 1], interval_s)
    ahead = programme.values(steps, situation.usable)
    choice = choose(
        profile,
        options,
        situation.layout if situation.running else None,
        interval_s,
        {
            layout: float(ahead[programme.index[layout]])
            for layout in (*feasible, *(o.layout for o in options))
        },
        interval_s * lookahead,
    )
    option = choice.option
    if option.stay:
        why = f"{option.layout} stays: nothing else pays for its change"
    else:
        why = (
            f"{option.layout} on {situation.usable} nodes, "
            f"{profile.samples_per_s(option.layout):.4g} samples/s, {choice.liveput:.4g} expected "
            f"over {lookahead} intervals"
        )
    return Verdict(option.layout, option.stay, why, forecast.mean, choice.liveput)


def first_cost(profile: Profile, costs: CostModel, situation: Situation, layout: Layout) -> Cost:
    """What going from the situation to `layout` costs, from counts alone."""
    if not situation.started or situation.layout is None:
        return costs.cost(
            profile, Change(MigrationKind.START, None, layout, fresh_nodes=layout.positions, noticed=True)
        )
    change = sketch_change(
        profile, situation.layout, situation.survivors, situation.lost_positions, layout, situation.noticed
    )
    return costs.cost(profile, change)
