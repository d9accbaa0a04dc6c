"""All that a controller remembers between two events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.planning.costs import NO_COST, Cost
from runtime.planning.layout import Cuts
from runtime.planning.placement import worker_names
from runtime.planning.types import Layout, MigrationPlan, Position
from runtime.planning.whole_instances import NOTHING, whole


@dataclass(frozen=True)
class ControllerState:
    """All that a controller remembers.

    `nodes` maps the nodes that are here to the deadline of their notice, None without one (a node is a worker
    where instances have several `gpus`). `layout`, `cuts` and `assignment` are those of the last live
    generation; `pending` is a plan that was commanded at `pending_since_s` and is not live yet,
    `pending_cost` what it was expected to cost.
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
    gpus: int = 1

    @property
    def usable(self) -> tuple[str, ...]:
        """Nodes that may take positions: those here and not about to go, on instances that are whole."""
        staying = tuple(sorted(node for node, deadline_s in self.nodes.items() if deadline_s is None))
        if self.gpus == 1:
            return staying
        return tuple(worker for name in whole(staying, self.gpus) for worker in worker_names(name, self.gpus))

    @property
    def instances(self) -> int:
        """How many instances there are that may take positions."""
        return len(self.usable) // self.gpus

    @property
    def runs(self) -> bool:
        """Whether the last live generation still trains: it exists and every member is here."""
        return (
            self.layout is not None
            and not self.broken
            and all(node in self.nodes for node in self.assignment)
        )

    @property
    def member_leaving(self) -> bool:
        """Whether a member of the last live generation is about to go."""
        return any(self.nodes.get(node) is not None for node in self.assignment)

    @property
    def sources_hold(self) -> bool:
        """Whether every source of the pending plan has what it is to send."""
        return self.pending is None or all(
            fetch.source is None or fetch.layer in self.holds.get(fetch.source, NOTHING)
            for fetch in self.pending.fetches
        )

    def survivors(self) -> tuple[int, ...]:
        """For every stage of the last live layout, how many usable nodes hold all of it.

        A stage that only a node about to go holds counts one: it can still be fetched from there.
        """
        usable = set(self.usable)
        counts = []
        for stage in self.cuts:
            layers = frozenset(stage)
            holders = [node for node, held in self.holds.items() if layers <= held]
            counts.append(sum(node in usable for node in holders) or min(1, len(holders)))
        return tuple(counts)
