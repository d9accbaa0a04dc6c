"""What each event does to the controller's state, and what a batch of them means for the decision."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from runtime.planning.placement import instance_of
from runtime.planning.state import ControllerState
from runtime.planning.types import (
    Event,
    GenerationLive,
    IntervalElapsed,
    MigrationFailed,
    NodeJoined,
    NodeLost,
    NodeNoticed,
    NoticeWithdrawn,
    StateReported,
    TrainingStopped,
)
from runtime.planning.whole_instances import NOTHING

MEMORY = 720  # intervals of availability that a controller remembers


@dataclass
class News:
    """What a batch of events means for the decision."""

    changed: bool = False  # the fleet is not what it was
    forced: bool = False  # training stands still, or will
    unforeseen: bool = False  # a step in flight is lost
    pending_broken: bool = False
    interval: bool = False
    causes: list[str] = field(default_factory=list)

    def cause(self, node: str, gpus: int, what: str) -> None:
        """Note what befell a node; what befalls all workers of an instance befalls it once."""
        said = f"{instance_of(node, gpus)} {what}"
        if said not in self.causes:
            self.causes.append(said)


def apply(state: ControllerState, event: Event, news: News) -> ControllerState:
    """The state after one event; what it means for the decision is noted in `news`."""
    match event:
        case NodeJoined(node=node):
            if node in state.nodes:
                return state
            news.changed = True
            news.cause(node, state.gpus, "joined")
            return replace(
                state, nodes={**state.nodes, node: None}, holds={**state.holds, node: NOTHING}, waiting=""
            )
        case NodeLost(node=node):
            return _lose(state, node, news)
        case NodeNoticed(node=node, deadline_s=deadline_s):
            if node not in state.nodes:
                return state
            news.changed = True
            news.cause(node, state.gpus, "will go")
            if state.pending is not None and node in state.pending.assignment:
                news.pending_broken = news.forced = True
            elif state.pending is None and node in state.assignment:
                news.forced = True
            return replace(state, nodes={**state.nodes, node: deadline_s})
        case NoticeWithdrawn(node=node):
            if state.nodes.get(node) is None:
                return state
            news.changed = True
            news.cause(node, state.gpus, "stays after all")
            return replace(state, nodes={**state.nodes, node: None}, waiting="")
        case StateReported(holds=reported):
            state = replace(
                state, holds={node: frozenset(reported.get(node, NOTHING)) for node in state.nodes}
            )
            if state.pending is not None and not state.sources_hold:
                news.pending_broken = news.forced = news.unforeseen = True
                news.causes.append("the state is not where the plan needs it")
            return state
        case GenerationLive(generation=generation):
            return _go_live(state, generation, news)
        case MigrationFailed(generation=generation):
            if state.pending is None or state.pending.generation != generation:
                return state
            news.pending_broken = news.changed = True
            news.unforeseen = news.unforeseen or not state.runs
            news.causes.append(f"generation {generation} could not be built")
            return state
        case TrainingStopped():
            news.pending_broken = news.forced = news.unforeseen = True
            return replace(state, broken=True, waiting="")
        case IntervalElapsed():
            news.interval = True
            seen = (*state.history, state.instances)
            return replace(state, history=seen[-MEMORY:])


def _lose(state: ControllerState, node: str, news: News) -> ControllerState:
    if node not in state.nodes:
        return state
    news.changed = True
    news.cause(node, state.gpus, "lost")
    was_running = state.runs
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


def _go_live(state: ControllerState, generation: int, news: News) -> ControllerState:
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
        holds={node: plan.held(node) if node in plan.assignment else NOTHING for node in state.nodes},
        pending=None,
        started=True,
        broken=gone,
        waiting="",
    )
