"""The words of planning: layouts, positions, what nodes hold, and the moves of a migration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, order=True)
class Layout:
    """D data-parallel pipelines of P stages each."""

    pipelines: int
    stages: int

    @property
    def positions(self) -> int:
        """How many workers the layout needs."""
        return self.pipelines * self.stages

    def __str__(self) -> str:
        return f"{self.pipelines}x{self.stages}"

    @classmethod
    def parse(cls, text: str) -> Layout:
        """The layout that says of itself `text`."""
        pipelines, stages = text.split("x")
        return cls(int(pipelines), int(stages))


@dataclass(frozen=True, order=True)
class Position:
    """One worker's place: which pipeline, which stage; both from 0."""

    pipeline: int
    stage: int


class MigrationKind(StrEnum):
    """How a change of assignment gets its state (paper, section 6)."""

    START = "start"  # the first assignment: layers are made from the seed
    INTRA_STAGE = "intra_stage"  # every position is taken by a node that already holds its stage
    INTER_STAGE = "inter_stage"  # some node loads its stage from a live replica
    PIPELINE = "pipeline"  # P changes, layers are cut anew
    ROLLBACK = "rollback"  # some stage has no live holder: its state comes from the backup


@dataclass(frozen=True)
class Fetch:
    """`node` needs `layer`, from the live node `source`; None: from the backup (or the seed at step 0)."""

    node: str
    layer: int
    source: str | None


@dataclass(frozen=True)
class MigrationPlan:
    """A new assignment and how its state gets there.

    `cuts[p]` are the layer indices of stage p. `noticed` is True when no state and no step in flight has been
    lost: the change was foreseen (a notice, a join, a planned change) and can be prepared while training.
    Where nodes are redundant `works` are the stages of each, its position's own among them, and `shadows`
    those of which it keeps a copy; a position that nobody takes is worked by a neighbour.
    """

    generation: int
    kind: MigrationKind
    layout: Layout
    cuts: tuple[tuple[int, ...], ...]
    assignment: Mapping[str, Position]
    fetches: tuple[Fetch, ...]
    noticed: bool
    bytes_moved: int
    expected_pause_s: float
    why: str
    works: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shadows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def stages_of(self, node: str) -> tuple[int, ...]:
        """The stages that a member works."""
        return self.works.get(node, (self.assignment[node].stage,))

    def held(self, node: str) -> frozenset[int]:
        """The layers of a member, copies of its neighbour's included."""
        stages = (*self.stages_of(node), *self.shadows.get(node, ()))
        return frozenset(layer for stage in stages for layer in self.cuts[stage])


# ---- events: what the controller is told ---------------------------------------------------------------


@dataclass(frozen=True)
class NodeJoined:
    """A node's worker is connected and idle; it holds nothing."""

    node: str
    gpus: int = 1


@dataclass(frozen=True)
class NodeLost:
    """A node is gone, and what it held with it."""

    node: str


@dataclass(frozen=True)
class NodeNoticed:
    """The cloud will take this node at `deadline_s` (same clock as `now_s`)."""

    node: str
    deadline_s: float


@dataclass(frozen=True)
class NoticeWithdrawn:
    """The deadline passed, or the cloud changed its mind, and the node is still there."""

    node: str


@dataclass(frozen=True)
class StateReported:
    """What nodes hold at the last committed step: after an abandoned one, or a generation's first commit.

    Nodes that are left out hold nothing of use.
    """

    holds: Mapping[str, frozenset[int]]


@dataclass(frozen=True)
class GenerationLive:
    """The first step of this generation was committed: its migration is over."""

    generation: int


@dataclass(frozen=True)
class MigrationFailed:
    """The pending generation could not be built (a member died); the running one goes on. Plan again."""

    generation: int


@dataclass(frozen=True)
class TrainingStopped:
    """No generation is at work any more: the running one was abandoned, and a pending one with it.

    A StateReported follows in the same batch. The controller must command a plan, or Wait.
    """


@dataclass(frozen=True)
class IntervalElapsed:
    """One planning interval ended: record availability, forecast, plan."""


Event = (
    NodeJoined
    | NodeLost
    | NodeNoticed
    | NoticeWithdrawn
    | StateReported
    | GenerationLive
    | MigrationFailed
    | TrainingStopped
    | IntervalElapsed
)

# ---- commands: what the controller wants ---------------------------------------------------------------


@dataclass(frozen=True)
class Reconfigure:
    """Carry out this plan. It replaces every plan given before it."""

    plan: MigrationPlan


@dataclass(frozen=True)
class Wait:
    """No layout fits the nodes there are: hold still until nodes come."""

    why: str


@dataclass(frozen=True)
class Restart:
    """Save the state, end every worker and start a new one on each node; say when they are there."""

    why: str


Command = Reconfigure | Wait | Restart
