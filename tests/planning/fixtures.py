"""What the tests of planning and replay share: small profiles, and a job driven through the controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from parcae_cli.catalogue import load_model
from parcae_cli.replay_inputs import profile_and_costs
from runtime.planning.controller import ControllerConfig, Decision, initial_state, step
from runtime.planning.costs import CostModel
from runtime.planning.profile import Profile
from runtime.planning.types import (
    Event,
    GenerationLive,
    MigrationKind,
    MigrationPlan,
    NodeJoined,
    Reconfigure,
    Restart,
    Wait,
)


@lru_cache(maxsize=32)
def tables(model: str, costs: str, nodes: int) -> tuple[Profile, CostModel]:
    """A shipped model's profile and costs."""
    return profile_and_costs(load_model(model), costs, nodes)


def config(
    model: str = "gpt-tiny", costs: str = "measured", nodes: int = 8, gpus: int = 1, **changes: object
) -> ControllerConfig:
    """A controller for a shipped model."""
    profile, cost_model = tables(model, costs, nodes * gpus)
    made = ControllerConfig(profile, cost_model, interval_s=1.0, max_nodes=nodes, gpus=gpus)
    return replace(made, **changes)  # type: ignore[arg-type]


class Job:
    """A job without workers: it does what the controller commands, at once unless told otherwise."""

    def __init__(self, settings: ControllerConfig, prompt: bool = True) -> None:
        self.config, self.prompt = settings, prompt
        self.state = initial_state(settings)
        self.now_s = 0.0
        self.plans: list[MigrationPlan] = []

    def tell(self, *events: Event) -> Decision:
        """Pass events on, carry the commands out, and check what any plan must be."""
        self.now_s += 1.0
        holds_before = dict(self.state.holds)
        decision = step(self.config, self.state, events, self.now_s)
        self.state = decision.state
        for command in decision.commands:
            if isinstance(command, Reconfigure):
                check_plan(self.config, command.plan, self.state.holds, set(self.state.usable))
                self.plans.append(command.plan)
                if self.prompt:
                    self.live()
            else:
                assert isinstance(command, Wait | Restart)
        del holds_before
        return decision

    def live(self) -> None:
        """The pending generation commits its first step."""
        assert self.state.pending is not None
        decision = step(self.config, self.state, [GenerationLive(self.state.pending.generation)], self.now_s)
        assert decision.commands == ()
        self.state = decision.state

    def with_nodes(self, count: int) -> Job:
        """Let so many nodes join at once."""
        self.tell(*(NodeJoined(f"n{index}") for index in range(count)))
        return self


def check_plan(
    settings: ControllerConfig,
    plan: MigrationPlan,
    holds: Mapping[str, frozenset[int]],
    usable: set[str],
) -> None:
    """Whatever the history, a plan is whole: every position once, every layer from somebody who has it."""
    positions = [(position.pipeline, position.stage) for position in plan.assignment.values()]
    assert sorted(positions) == [
        (pipeline, stage) for pipeline in range(plan.layout.pipelines) for stage in range(plan.layout.stages)
    ]
    assert set(plan.assignment) <= usable
    assert [layer for stage in plan.cuts for layer in stage] == list(
        range(len(settings.profile.layer_params))
    )
    fetched: dict[str, set[int]] = {node: set() for node in plan.assignment}
    for fetch in plan.fetches:
        fetched[fetch.node].add(fetch.layer)
        if plan.kind in (MigrationKind.START, MigrationKind.ROLLBACK):
            assert fetch.source is None
        else:
            assert fetch.source is not None and fetch.source != fetch.node
            assert fetch.layer in holds[fetch.source]
    for node, position in plan.assignment.items():
        needed = set(plan.cuts[position.stage])
        if plan.kind in (MigrationKind.START, MigrationKind.ROLLBACK):
            assert fetched[node] == needed
        else:
            assert fetched[node] == needed - holds.get(node, frozenset())
    if plan.kind is MigrationKind.INTRA_STAGE:
        assert plan.bytes_moved == 0
