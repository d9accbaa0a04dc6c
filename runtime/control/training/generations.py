"""From a plan to what each worker is told, and what the workers of a plan hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.control.messages import Copied, Prepare, Prepared, Switch
from runtime.control.training.roster import Worker
from runtime.planning.types import MigrationFailed, MigrationPlan

# A generation whose groups do not stand by then is given up.
PREPARE_TIMEOUT_S = 10.0
# A copy may take so long, or so many steps, where no deadline presses; then the state is sent at the switch.
COPY_PATIENCE_S = 60.0
COPY_PATIENCE_STEPS = 10


@dataclass
class Pending:
    """A generation that is being built while another one trains."""

    plan: MigrationPlan
    since_s: float
    switch_s: float = 0.0  # how long it may take with all of the state to send
    ahead: bool = True  # whether the state is copied while the other one trains
    prepared: set[str] = field(default_factory=set)
    copied: set[str] = field(default_factory=set)

    def heard(self, node: str, message: Prepared | Copied) -> None:
        """A member's groups stand, or its state is here."""
        if message.generation == self.plan.generation:
            (self.prepared if isinstance(message, Prepared) else self.copied).add(node)

    @property
    def stands(self) -> bool:
        """Whether every member's groups stand."""
        return self.prepared >= set(self.plan.assignment)

    @property
    def here(self) -> bool:
        """Whether every layer that is copied ahead has come."""
        return not self.ahead or self.copied >= {f.node for f in self.plan.fetches if f.source is not None}

    def goes(
        self, now_s: float, step_s: float, notices: Mapping[str, float], tell: Callable[[str, str, str], None]
    ) -> bool:
        """Whether to switch at the commit of `now_s`: it stands, and its state is here, or else too late.

        The next commit comes `step_s` later; `notices` are the deadlines of nodes, on the same clock.
        """
        if not self.stands or self.here:
            return self.stands
        leaving = [at_s for node, at_s in notices.items() if node not in self.plan.assignment]
        left_s = min(leaving, default=math.inf) - now_s
        patience_s = max(COPY_PATIENCE_S, COPY_PATIENCE_STEPS * step_s)
        if left_s < step_s + self.switch_s:
            why = f"the notice runs out in {max(0.0, left_s):.1f} s"
        elif now_s > self.since_s + patience_s:
            why = f"the copy has not come in {patience_s:.0f} s"
        else:
            return False
        tell("copy", "the state is not all there: the rest is sent at the switch", why)
        return True

    def overtaken(self, tell: Callable[[str, str, str], None]) -> MigrationFailed:
        """A member of the running generation went before the switch: this one will not be."""
        what = "the copy was whole" if self.stands and self.here else "it was not ready"
        why = f"{what}; layers copied of the last committed step count as held"
        tell("copy", f"generation {self.plan.generation} is given up: a node went before its switch", why)
        return MigrationFailed(self.plan.generation)

    def possible(self, alive: Collection[str]) -> bool:
        """Whether everybody whom the plan needs, as a member or as a source, is still here."""
        sources = {fetch.source for fetch in self.plan.fetches if fetch.source is not None}
        return set(self.plan.assignment) | sources <= set(alive)

    def late(self, now_s: float) -> bool:
        """Whether it should have been ready long ago."""
        return not self.stands and now_s > self.since_s + PREPARE_TIMEOUT_S


def prepare_messages(
    plan: MigrationPlan, workers: Mapping[str, Worker], ahead: bool = False
) -> dict[str, Prepare]:
    """What each member is told to build, and to copy if `ahead`.

    The rendezvous is the store of the first position's worker.
    """
    copies: dict[str, list[list[Any]]] = {node: [] for node in plan.assignment}
    for fetch in plan.fetches:
        if ahead and fetch.source is not None:
            source = workers[fetch.source].hello
            copies[fetch.node].append([fetch.layer, [source.host, source.transfer_port]])
    rows: dict[int, list[str]] = {}  # the pipelines' nodes, in the order of their stages
    if plan.works:
        for node in sorted(plan.assignment, key=lambda node: plan.assignment[node]):
            rows.setdefault(plan.assignment[node].pipeline, []).append(node)
    first = min(plan.assignment, key=lambda node: plan.assignment[node])
    hello = workers[first].hello
    return {
        node: Prepare(
            plan.generation,
            plan.layout.pipelines,
            [position.pipeline, position.stage],
            [list(stage) for stage in plan.cuts],
            [hello.host, hello.store_port],
            copies[node],
            [list(plan.works[other]) for other in rows.get(position.pipeline, ())],
            [list(plan.shadows[other]) for other in rows.get(position.pipeline, ())],
        )
        for node, position in plan.assignment.items()
    }


def switch_messages(plan: MigrationPlan, step: int, workers: Mapping[str, Worker]) -> dict[str, Switch]:
    """What each member fetches, from whom, before it begins `step`."""

    def source(node: str | None) -> str | list[Any]:
        if node is None:
            return "backup" if step else "seed"
        hello = workers[node].hello
        return [hello.host, hello.transfer_port]

    fetches: dict[str, list[list[Any]]] = {node: [] for node in plan.assignment}
    for fetch in plan.fetches:
        fetches[fetch.node].append([fetch.layer, source(fetch.source)])
    return {node: Switch(plan.generation, step, wanted) for node, wanted in fetches.items()}


def members_hold(plan: MigrationPlan) -> dict[str, frozenset[int]]:
    """The layers of every member, once the generation is live."""
    return {node: plan.held(node) for node in plan.assignment}
