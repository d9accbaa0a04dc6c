"""Redundant pipelines: who works for whom, and where the state for that is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.planning.redundancy import arrange, workers_of
from runtime.planning.types import (
    GenerationLive,
    Layout,
    MigrationKind,
    NodeJoined,
    NodeLost,
    Position,
    Reconfigure,
    Wait,
)
from tests.planning.fixtures import Job, config

DEEP = Layout(2, 4)


class RedundantJob(Job):
    """A job whose plans may have holes."""

    def tell(self, *events: object) -> object:
        """Pass events on and carry out the plan at once."""
        from runtime.planning.controller import step

        self.now_s += 1.0
        holds = dict(self.state.holds)
        decision = step(self.config, self.state, events, self.now_s)  # type: ignore[arg-type]
        self.state = decision.state
        for command in decision.commands:
            if isinstance(command, Reconfigure):
                plan = command.plan
                self.plans.append(plan)
                for node in plan.assignment:
                    fetched = {fetch.layer for fetch in plan.fetches if fetch.node == node}
                    assert plan.held(node) <= fetched | holds.get(node, frozenset())
                live = GenerationLive(plan.generation)
                self.state = step(self.config, self.state, [live], self.now_s).state
            else:
                assert isinstance(command, Wait)
        return decision


def redundant_job(nodes: int) -> RedundantJob:
    job = RedundantJob(config(policy="redundancy", redundant=DEEP))
    job.tell(*(NodeJoined(f"n{index}") for index in range(nodes)))
    return job


def test_every_node_begins_with_its_successors_stage_beside_its_own() -> None:
    """Two pipelines of four; the last node of each keeps the first stage."""
    plan = redundant_job(8).plans[0]
    assert plan.kind is MigrationKind.START and plan.layout == DEEP
    for node, position in plan.assignment.items():
        assert plan.stages_of(node) == (position.stage,)
        assert plan.shadows[node] == ((position.stage + 1) % 4,)


def test_the_node_before_a_lost_one_works_its_stage_and_needs_nothing() -> None:
    """No bytes move, nobody else changes place, and a node that comes takes the hole."""
    job = redundant_job(8)
    start = job.plans[0].assignment
    job.tell(NodeLost("n2"))
    taken = job.plans[-1]
    before = next(n for n, at in start.items() if at == Position(start["n2"].pipeline, start["n2"].stage - 1))
    assert taken.kind is MigrationKind.INTRA_STAGE and taken.bytes_moved == 0
    assert taken.stages_of(before) == (start["n2"].stage - 1, start["n2"].stage)
    assert {n: at for n, at in start.items() if n != "n2"} == dict(taken.assignment)
    job.tell(NodeJoined("new"))
    filled = job.plans[-1]
    assert filled.assignment["new"] == start["n2"]
    assert {fetch.node for fetch in filled.fetches} == {"new"}
    assert filled.noticed and not taken.noticed


def test_two_neighbours_lost_stop_their_pipeline_and_its_nodes_fill_other_holes() -> None:
    """With n1 and n2 gone pipeline 0 ends; what is left of it takes n5's place."""
    job = redundant_job(8)
    job.tell(NodeLost("n1"), NodeLost("n2"), NodeLost("n5"))
    plan = job.plans[-1]
    assert plan.layout == Layout(1, 4) and len(plan.assignment) == 4
    assert {"n4", "n6", "n7"} < set(plan.assignment)


def test_too_few_nodes_for_a_pipeline_wait() -> None:
    """Two of four cannot begin; three of four can, one of them with two stages."""
    assert arrange(DEEP, ["a", "b"], {}) is None
    thin = arrange(DEEP, ["a", "b", "c"], {})
    assert thin is not None and sorted(map(len, thin.works.values())) == [1, 1, 2]
    assert workers_of([None, "b", None, "d"]) is None  # b would have three


@given(st.integers(2, 6), st.lists(st.sets(st.integers(0, 15), max_size=16), min_size=1, max_size=6))
def test_any_story_leaves_every_stage_of_every_pipeline_with_one_worker(
    stages: int, story: list[set[int]]
) -> None:
    """Whoever comes and goes: each stage is worked once in each pipeline, and nobody works more than two."""
    previous: dict[str, Position] = {}
    for alive in story:
        usable = [f"n{index}" for index in alive]
        found = arrange(Layout(3, stages), usable, previous)
        if found is None:
            previous = {}
            continue
        assert set(found.assignment) <= set(usable)
        for pipeline in range(found.layout.pipelines):
            members = [n for n, at in found.assignment.items() if at.pipeline == pipeline]
            assert sorted(s for n in members for s in found.works[n]) == list(range(stages))
        assert all(len(works) <= 2 for works in found.works.values())
        assert all(not set(found.works[n]) & set(found.shadows[n]) for n in found.works)
        assert arrange(Layout(3, stages), usable, found.assignment) == found  # and then nothing changes
        previous = dict(found.assignment)
