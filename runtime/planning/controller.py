"""The one place that decides: events in, commands out, nothing else.

A real job, a local job and a replay all call `step`; what they see is what was decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from runtime.planning.costs import NO_COST, CostModel
from runtime.planning.decide import Planner, Situation
from runtime.planning.events import News, apply
from runtime.planning.forecast import Forecaster, LastValue
from runtime.planning.foresight import Foresight
from runtime.planning.migration import Moves, plan_moves
from runtime.planning.placement import chosen_placement
from runtime.planning.profile import Profile
from runtime.planning.programme import Programme
from runtime.planning.redundancy import arrange, redundant_moves
from runtime.planning.state import ControllerState
from runtime.planning.types import (
    Command,
    Event,
    Layout,
    MigrationKind,
    MigrationPlan,
    Reconfigure,
    Restart,
    Wait,
)

MOST_LAYOUTS = 160  # that a plan for a whole trace weighs against each other
POLICIES = ("parcae", "parcae-oracle", "reactive", "offline-optimum", "checkpoint", "redundancy")


@dataclass(frozen=True)
class ControllerConfig:
    """What a controller knows from the start. `history` and `lookahead` count intervals of `interval_s`.

    Policies: `parcae` plans over the look-ahead with its forecaster; `parcae-oracle` is the same, named apart
    because its forecaster knows the trace; `offline-optimum` has `foresight` of all of it; `reactive` takes
    the fastest layout at every change and never looks ahead; `checkpoint` takes the same layouts, but stops
    for every change and starts anew from the last checkpoint; `redundancy` keeps the depth of `redundant` and
    has at most as many pipelines. `max_nodes` counts instances, of `gpus` GPUs
    each; with several, the nodes of events, assignments and fetches are workers (`placement.worker_names`).
    """

    profile: Profile
    costs: CostModel
    policy: str = "parcae"
    forecaster: Forecaster = field(default_factory=LastValue)
    interval_s: float = 60.0
    lookahead: int = 12
    history: int = 12
    max_nodes: int = 32
    foresight: Foresight | None = None
    gpus: int = 1
    redundant: Layout | None = None

    @cached_property
    def programme(self) -> Programme:
        """The tables for a whole trace: of layouts that could matter at any availability."""
        layouts = self.profile.contenders(1, self.max_nodes, MOST_LAYOUTS, self.gpus)
        return Programme(self.profile, self.costs, layouts, self.max_nodes, gpus=self.gpus)

    @cached_property
    def planner(self) -> Planner:
        """What reaches the verdicts."""
        return Planner(
            self.profile,
            self.costs,
            self.forecaster,
            self.interval_s,
            self.lookahead,
            self.max_nodes,
            self.foresight,
            looks_ahead=self.policy not in ("reactive", "checkpoint", "redundancy"),
            gpus=self.gpus,
        )


@dataclass(frozen=True)
class Decision:
    """What `step` decided, and what it saw: `availability` past, `forecast` ahead, `liveput` in samples/s."""

    state: ControllerState
    commands: tuple[Command, ...]
    why: str
    availability: tuple[int, ...] = ()
    forecast: tuple[float, ...] = ()
    liveput: float = 0.0


def initial_state(config: ControllerConfig) -> ControllerState:
    """A controller that knows of no node yet.

    Raises:
        ValueError: the configuration has an unknown policy or an impossible number.
    """
    if config.policy not in POLICIES:
        raise ValueError(f"no policy {config.policy!r}; there are {', '.join(POLICIES)}")
    counts = (config.lookahead, config.history, config.max_nodes, config.gpus)
    if config.interval_s <= 0 or min(counts) < 1:
        raise ValueError("interval_s, lookahead, history, max_nodes and gpus must be above 0")
    return ControllerState(gpus=config.gpus)


def step(config: ControllerConfig, state: ControllerState, events: Sequence[Event], now_s: float) -> Decision:
    """What to do about everything that happened at `now_s` (seconds, any clock that does not go back)."""
    news = News()
    for event in events:
        state = apply(state, event, news)
    if not (news.forced or news.changed or news.interval):
        return Decision(state, (), "nothing to decide", state.history)
    pending_ok = state.pending is not None and not news.pending_broken
    running_ok = state.runs
    if state.broken and not pending_ok:
        news.forced = True
    if news.pending_broken:
        state = replace(state, pending=None)
    if config.redundant is not None:
        return _redundant(config, config.redundant, state, news, pending_ok, now_s)
    situation = Situation(
        usable=min(state.instances, config.max_nodes),
        layout=state.layout,
        survivors=state.survivors(),
        lost_positions=sum(node not in state.nodes for node in state.assignment),
        running=running_ok,
        can_stay=(pending_ok or (running_ok and not state.member_leaving)) and not news.forced,
        pending=state.pending.layout if state.pending is not None else None,
        pending_left=state.pending_cost.after(now_s - state.pending_since_s) if pending_ok else NO_COST,
        noticed=not news.unforeseen and running_ok,
        started=state.started,
    )
    history = state.history if news.interval else (*state.history, state.instances)
    # There may be more nodes than are wanted for a while: a noticed one trains on beside its replacement.
    history = tuple(min(count, config.max_nodes) for count in history)
    verdict = config.planner.decide(situation, history, now_s)
    if verdict.layout is None:
        return _hold_still(config, state, verdict.forecast)
    if verdict.stay:
        return Decision(state, (), verdict.why, state.history, verdict.forecast, verdict.liveput)
    if config.policy == "checkpoint" and state.runs:
        # the plan is made when every process has been started again, and none holds anything
        restart = Restart(f"{', '.join(news.causes) or 'a change'}: {verdict.why}")
        return Decision(state, (restart,), restart.why, state.history, verdict.forecast, verdict.liveput)
    return _command(
        config, state, news, verdict.layout, verdict.why, verdict.forecast, verdict.liveput, now_s
    )


def _redundant(
    config: ControllerConfig,
    most: Layout,
    state: ControllerState,
    news: News,
    pending_ok: bool,
    now_s: float,
) -> Decision:
    """The policy `redundancy`: pipelines go on through a neighbour, nodes that come fill the holes."""
    pending = state.pending if pending_ok else None
    previous = pending.assignment if pending is not None else state.assignment
    target = arrange(most, state.usable, previous)
    if target is None:
        return _hold_still(config, state, ())
    can_stay = (pending_ok or (state.runs and not state.member_leaving)) and not news.forced
    if can_stay and target.assignment == previous:
        return Decision(state, (), f"{target.layout} stays", state.history)
    holes = target.layout.positions - len(target.assignment)
    why = f"{target.layout} on {len(state.usable)} nodes" + (f", {holes} worked by neighbours" * bool(holes))
    noticed = not news.unforeseen and state.runs
    moves = redundant_moves(
        config.profile, target, state.usable, state.holds, state.layout, state.assignment, noticed,
        state.started,
    )  # fmt: skip
    return _command(config, state, news, target.layout, why, (), 0.0, now_s, moves)


def _hold_still(config: ControllerConfig, state: ControllerState, forecast: tuple[float, ...]) -> Decision:
    why = config.profile.why_nothing_fits(state.instances, config.gpus)
    if state.runs and state.pending is None:
        # nodes that were noticed still work; train on them for as long as they last
        return Decision(state, (), why, state.history, forecast)
    if state.waiting == why:
        return Decision(state, (), why, state.history, forecast)
    state = replace(state, waiting=why, pending=None)
    return Decision(state, (Wait(why),), why, state.history, forecast)


def _command(
    config: ControllerConfig,
    state: ControllerState,
    news: News,
    layout: Layout,
    why: str,
    forecast: tuple[float, ...],
    liveput: float,
    now_s: float,
    moves: Moves | None = None,
) -> Decision:
    moves = moves or plan_moves(
        config.profile,
        layout,
        state.usable,
        state.holds,
        state.layout,
        state.assignment,
        noticed=not news.unforeseen and state.runs,
        started=state.started,
        gpus=config.gpus,
    )
    if config.gpus > 1 and layout != state.layout:
        why = f"{why}; {chosen_placement(layout, config.gpus).words}"
    if news.causes:
        shown = ", ".join(news.causes[:3]) + (
            f" and {len(news.causes) - 3} more" if len(news.causes) > 3 else ""
        )
        why = f"{shown}: {why}"
    cost = config.costs.cost(config.profile, moves.change)
    plan = MigrationPlan(
        generation=state.generation + 1,
        kind=moves.change.kind,
        layout=layout,
        cuts=moves.cuts,
        assignment=moves.assignment,
        fetches=moves.fetches,
        noticed=not news.unforeseen and moves.change.kind is not MigrationKind.ROLLBACK,
        bytes_moved=moves.bytes_moved,
        expected_pause_s=cost.pause_s,
        why=why,
        works=moves.works,
        shadows=moves.shadows,
    )
    state = replace(
        state,
        pending=plan,
        pending_cost=cost,
        pending_since_s=now_s,
        generation=plan.generation,
        waiting="",
    )
    return Decision(state, (Reconfigure(plan),), why, state.history, forecast, liveput)
