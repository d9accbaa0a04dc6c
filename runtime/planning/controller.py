"""The one place that decides: events in, commands out, nothing else.

A real job, a local job and a replay all call `step`; what they see is what was decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from runtime.planning.costs import NO_COST, Cost, CostModel
from runtime.planning.decide import Planner, Situation
from runtime.planning.forecast import Forecaster, LastValue
from runtime.planning.layout import Cuts
from runtime.planning.migration import NOTHING, plan_moves
from runtime.planning.profile import Profile
from runtime.planning.programme import Foresight, Programme
from runtime.planning.types import (
    Command,
    Event,
    GenerationLive,
    IntervalElapsed,
    Layout,
    MigrationFailed,
    MigrationKind,
    MigrationPlan,
    NodeJoined,
    NodeLost,
    NodeNoticed,
    NoticeWithdrawn,
    Position,
    Reconfigure,
    StateReported,
    TrainingStopped,
    Wait,
)

MOST_LAYOUTS = 160  # that a plan for a whole trace weighs against each other
MEMORY = 720  # intervals of availability that a controller remembers
POLICIES = ("parcae", "parcae-oracle", "reactive", "offline-optimum")


@dataclass(frozen=True)
class ControllerConfig:
    """What a controller knows from the start. `history` and `lookahead` count intervals of `interval_s`.

    Policies: `parcae` plans over the look-ahead with its forecaster; `parcae-oracle` is the same, named apart
    because its forecaster knows the trace; `offline-optimum` has `foresight` of all of it; `reactive` takes
    the fastest layout at every change and never looks ahead.
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

    @cached_property
    def programme(self) -> Programme:
        """The tables for a whole trace: of layouts that could matter at any availability."""
        layouts = self.profile.contenders(1, self.max_nodes, MOST_LAYOUTS)
        return Programme(self.profile, self.costs, layouts, self.max_nodes)

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
            looks_ahead=self.policy != "reactive",
        )


@dataclass(frozen=True)
class ControllerState:
    """All that a controller remembers.

    `nodes` maps the nodes that are here to the deadline of their notice, None without one. `layout`, `cuts`
    and `assignment` are those of the last live generation; `pending` is a plan that was commanded at
    `pending_since_s` and is not live yet, `pending_cost` what it was expected to cost.
    """

    nodes: Mapping[str, float | None] = field(default_factory=dict)
    holds: Mapping[str, frozenset[int]] = field(default_factory=dict)
    layout: Layout | None = None
    cuts: Cuts = ()
    assignment: Mapping[str, Position] = field(default_factory=dict)
    pending: MigrationPlan | None = None
    pending_cost: Cost = NO_COST
    pending_since_s: float = 0.0
    generation: int = 0
    started: bool = False
    broken: bool = False
    waiting: str = ""
    history: tuple[int, ...] = ()

    @property
    def usable(self) -> tuple[str, ...]:
        """Nodes that may take positions: those here and not about to go."""
        return tuple(sorted(node for node, deadline_s in self.nodes.items() if deadline_s is None))


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
    if config.interval_s <= 0 or config.lookahead < 1 or config.history < 1 or config.max_nodes < 1:
        raise ValueError("interval_s, lookahead, history and max_nodes must be above 0")
    return ControllerState()


def step(config: ControllerConfig, state: ControllerState, events: Sequence[Event], now_s: float) -> Decision:
    """What to do about everything that happened at `now_s` (seconds, any clock that does not go back)."""
    news = _News()
    for event in events:
        state = _apply(config, state, event, news)
    if not (news.forced or news.changed or news.interval):
        return Decision(state, (), "nothing to decide", state.history)
    pending_ok = state.pending is not None and not news.pending_broken
    running_ok = _running(state)
    if state.broken and not pending_ok:
        news.forced = True
    if news.pending_broken:
        state = replace(state, pending=None)
    situation = Situation(
        usable=len(state.usable),
        layout=state.layout,
        survivors=_survivors(config, state),
        lost_positions=sum(node not in state.nodes for node in state.assignment),
        running=running_ok,
        can_stay=(pending_ok or (running_ok and not _leaving(state))) and not news.forced,
        pending=state.pending.layout if state.pending is not None else None,
        pending_left=state.pending_cost.after(now_s - state.pending_since_s) if pending_ok else NO_COST,
        noticed=not news.unforeseen and running_ok,
        started=state.started,
    )
    history = state.history if news.interval else (*state.history, len(state.usable))
    verdict = config.planner.decide(situation, history, now_s)
    if verdict.layout is None:
        return _hold_still(config, state, verdict.forecast)
    if verdict.stay:
        return Decision(state, (), verdict.why, state.history, verdict.forecast, verdict.liveput)
    return _command(
        config, state, news, verdict.layout, verdict.why, verdict.forecast, verdict.liveput, now_s
    )


@dataclass
class _News:
    """What a batch of events means for the decision."""

    changed: bool = False  # the fleet is not what it was
    forced: bool = False  # training stands still, or will
    unforeseen: bool = False  # a step in flight is lost
    pending_broken: bool = False
    interval: bool = False
    causes: list[str] = field(default_factory=list)


def _apply(config: ControllerConfig, state: ControllerState, event: Event, news: _News) -> ControllerState:
    # one arm a kind of event; the type checker holds us to all of them
    match event:
        case NodeJoined(node=node):
            if node in state.nodes:
                return state
            news.changed = True
            news.causes.append(f"{node} joined")
            return replace(
                state, nodes={**state.nodes, node: None}, holds={**state.holds, node: NOTHING}, waiting=""
            )
        case NodeLost(node=node):
            return _lose(state, node, news)
        case NodeNoticed(node=node, deadline_s=deadline_s):
            if node not in state.nodes:
                return state
            news.changed = True
            news.causes.append(f"{node} will go")
            if state.pending is not None and node in state.pending.assignment:
                news.pending_broken = news.forced = True
            elif state.pending is None and node in state.assignment:
                news.forced = True
            return replace(state, nodes={**state.nodes, node: deadline_s})
        case NoticeWithdrawn(node=node):
            if state.nodes.get(node) is None:
                return state
            news.changed = True
            news.causes.append(f"{node} stays after all")
            return replace(state, nodes={**state.nodes, node: None}, waiting="")
        case StateReported(holds=reported):
            state = replace(
                state, holds={node: frozenset(reported.get(node, NOTHING)) for node in state.nodes}
            )
            if state.pending is not None and not _sources_hold(state):
                news.pending_broken = news.forced = news.unforeseen = True
                news.causes.append("the state is not where the plan needs it")
            return state
        case GenerationLive(generation=generation):
            return _go_live(state, generation, news)
        case MigrationFailed(generation=generation):
            if state.pending is None or state.pending.generation != generation:
                return state
            news.pending_broken = news.changed = True
            news.unforeseen = news.unforeseen or not _running(state)
            news.causes.append(f"generation {generation} could not be built")
            return state
        case TrainingStopped():
            news.pending_broken = news.forced = news.unforeseen = True
            return replace(state, broken=True, waiting="")
        case IntervalElapsed():
            news.interval = True
            seen = (*state.history, len(state.usable))
            return replace(state, history=seen[-MEMORY:])


def _lose(state: ControllerState, node: str, news: _News) -> ControllerState:
    if node not in state.nodes:
        return state
    news.changed = True
    news.causes.append(f"{node} lost")
    was_running = _running(state)
    state = replace(
        state,
        nodes={other: deadline_s for other, deadline_s in state.nodes.items() if other != node},
        holds={other: held for other, held in state.holds.items() if other != node},
    )
    pending = state.pending
    if pending is not None and (
        node in pending.assignment or any(fetch.source == node for fetch in pending.fetches)
    ):
        news.pending_broken = news.forced = news.unforeseen = True
    if node in state.assignment and was_running:
        news.forced = news.unforeseen = True
        # a change that was being prepared beside it has to start from what is left
        news.pending_broken = news.pending_broken or pending is not None
        state = replace(state, broken=True)
    return state


def _go_live(state: ControllerState, generation: int, news: _News) -> ControllerState:
    plan = state.pending
    if plan is None or plan.generation != generation:
        return state
    gone = any(node not in state.nodes for node in plan.assignment)
    if gone:
        news.forced = True
    return replace(
        state,
        layout=plan.layout,
        cuts=plan.cuts,
        assignment=plan.assignment,
        holds={
            node: frozenset(plan.cuts[plan.assignment[node].stage]) if node in plan.assignment else NOTHING
            for node in state.nodes
        },
        pending=None,
        started=True,
        broken=gone,
        waiting="",
    )


def _running(state: ControllerState) -> bool:
    """Whether the last live generation still trains: it exists and every member is here."""
    return (
        state.layout is not None
        and not state.broken
        and all(node in state.nodes for node in state.assignment)
    )


def _leaving(state: ControllerState) -> bool:
    return any(state.nodes.get(node) is not None for node in state.assignment)


def _sources_hold(state: ControllerState) -> bool:
    assert state.pending is not None
    return all(
        fetch.source is None or fetch.layer in state.holds.get(fetch.source, NOTHING)
        for fetch in state.pending.fetches
    )


def _survivors(config: ControllerConfig, state: ControllerState) -> tuple[int, ...]:
    """For every stage of the last live layout, how many usable nodes hold all of it.

    A stage that only a node about to go holds counts one: it can still be fetched from there.
    """
    if state.layout is None:
        return ()
    counts = []
    usable = set(state.usable)
    for stage in state.cuts:
        layers = frozenset(stage)
        holders = [node for node, held in state.holds.items() if layers <= held]
        staying = sum(node in usable for node in holders)
        counts.append(staying or min(1, len(holders)))
    return tuple(counts)


def _hold_still(config: ControllerConfig, state: ControllerState, forecast: tuple[float, ...]) -> Decision:
    why = config.profile.why_nothing_fits(len(state.usable))
    if _running(state) and state.pending is None:
        # nodes that were noticed still work; train on them for as long as they last
        return Decision(state, (), why, state.history, forecast)
    if state.waiting == why:
        return Decision(state, (), why, state.history, forecast)
    state = replace(state, waiting=why, pending=None)
    return Decision(state, (Wait(why),), why, state.history, forecast)


def _command(
    config: ControllerConfig,
    state: ControllerState,
    news: _News,
    layout: Layout,
    why: str,
    forecast: tuple[float, ...],
    liveput: float,
    now_s: float,
) -> Decision:
    moves = plan_moves(
        config.profile,
        layout,
        state.usable,
        state.holds,
        state.layout,
        state.assignment,
        noticed=not news.unforeseen and _running(state),
        started=state.started,
    )
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
