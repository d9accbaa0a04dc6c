"""What the controller decides, told as stories of events."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.planning.controller import ControllerConfig, initial_state, step
from runtime.planning.types import (
    Event,
    GenerationLive,
    IntervalElapsed,
    Layout,
    MigrationFailed,
    MigrationKind,
    NodeJoined,
    NodeLost,
    NodeNoticed,
    NoticeWithdrawn,
    Reconfigure,
    Restart,
    StateReported,
    TrainingStopped,
    Wait,
)
from tests.planning.fixtures import Job, config


def test_the_first_plan_is_a_start_from_the_seed() -> None:
    """Eight nodes that join together get one plan: no bytes, nothing lost."""
    job = Job(config()).with_nodes(8)
    assert len(job.plans) == 1
    plan = job.plans[0]
    assert (plan.kind, plan.generation, plan.bytes_moved, plan.noticed) == (MigrationKind.START, 1, 0, True)
    assert plan.layout == Layout(4, 2)


def test_too_few_nodes_wait_with_the_arithmetic_and_only_once() -> None:
    """Until a second node comes there is one command, Wait."""
    job = Job(config())
    first = job.tell(NodeJoined("a"))
    assert first.commands == (Wait("gpt-tiny needs at least 2 nodes (1x2), 1 here"),)
    assert job.tell(IntervalElapsed()).commands == ()
    assert isinstance(job.tell(NodeJoined("b")).commands[0], Reconfigure)


def test_a_noticed_member_is_replaced_while_training_and_still_serves_as_a_source() -> None:
    """The plan is noticed, leaves the node out, and may fetch from it."""
    job = Job(config()).with_nodes(2)
    job.tell(NodeJoined("n2"))
    going = next(iter(job.plans[-1].assignment))
    before = dict(job.state.holds)
    job.tell(NodeNoticed(going, 100.0))
    plan = job.plans[-1]
    assert plan.noticed and going not in plan.assignment
    only_there = before[going] - frozenset().union(*(held for node, held in before.items() if node != going))
    assert plan.kind is not MigrationKind.ROLLBACK
    assert {fetch.layer for fetch in plan.fetches if fetch.source == going} == only_there
    assert job.tell(NodeLost(going)).commands == ()


def test_a_lost_member_forces_a_plan_that_is_not_noticed() -> None:
    """A replica is left, so nothing comes from the backup."""
    job = Job(config()).with_nodes(8)
    job.tell(NodeLost("n0"))
    assert not job.plans[-1].noticed
    assert job.plans[-1].kind is not MigrationKind.ROLLBACK


def test_a_lost_spare_changes_nothing() -> None:
    """Five nodes run 2x2; the fifth may go."""
    job = Job(config()).with_nodes(5)
    spare = next(node for node in job.state.nodes if node not in job.state.assignment)
    assert job.tell(NodeLost(spare)).commands == ()


def test_the_last_holder_of_a_layer_takes_the_job_back_to_the_backup() -> None:
    """With one pipeline any unannounced loss is a rollback, everything from the backup."""
    job = Job(config()).with_nodes(3)
    assert job.state.layout == Layout(1, 3)
    job.tell(NodeLost("n1"))
    plan = job.plans[-1]
    assert plan.kind is MigrationKind.ROLLBACK and not plan.noticed
    assert plan.bytes_moved > 0


def test_a_job_with_too_few_nodes_left_waits_and_comes_back() -> None:
    """Two nodes, one dies: wait; another joins: go on, from the backup."""
    job = Job(config()).with_nodes(2)
    assert isinstance(job.tell(NodeLost("n0")).commands[0], Wait)
    job.tell(NodeJoined("n9"))
    assert job.plans[-1].kind is MigrationKind.ROLLBACK


def test_a_notice_that_leaves_too_few_nodes_lets_training_go_on_while_it_can() -> None:
    """Nothing is commanded until the node is really gone."""
    job = Job(config()).with_nodes(2)
    assert job.tell(NodeNoticed("n0", 50.0)).commands == ()
    assert job.tell(IntervalElapsed()).commands == ()
    assert isinstance(job.tell(NodeLost("n0")).commands[0], Wait)


def test_a_withdrawn_notice_makes_the_node_usable_again() -> None:
    """Its notice had taken the last but one node out of the plan."""
    job = Job(config()).with_nodes(4)
    job.tell(NodeNoticed("n0", 50.0))
    job.tell(NoticeWithdrawn("n0"))
    assert "n0" in job.state.usable
    assert job.state.layout == Layout(2, 2)


def test_nothing_is_commanded_while_a_plan_is_pending_and_nothing_happens() -> None:
    """Intervals pass, the plan stands."""
    job = Job(config(), prompt=False).with_nodes(8)
    assert job.tell(IntervalElapsed()).commands == ()
    assert job.state.pending is not None


def test_a_loss_in_the_pending_plan_makes_a_new_one() -> None:
    """With the next generation, without the node."""
    job = Job(config(), prompt=False).with_nodes(8)
    job.tell(NodeLost("n3"))
    assert [plan.generation for plan in job.plans] == [1, 2]
    assert "n3" not in job.plans[-1].assignment
    assert job.plans[-1].kind is MigrationKind.START


def test_a_failed_migration_is_planned_again() -> None:
    """Under a new generation; a failure of an old one is no news."""
    job = Job(config(), prompt=False).with_nodes(8)
    assert job.tell(MigrationFailed(7)).commands == ()
    job.tell(MigrationFailed(1))
    assert [plan.generation for plan in job.plans] == [1, 2]


def test_a_stopped_training_gets_a_plan_or_a_wait_from_what_was_reported() -> None:
    """Whatever was pending is void; holdings are what nodes report."""
    job = Job(config()).with_nodes(4)
    holds = dict(job.state.holds)
    decision = job.tell(TrainingStopped(), StateReported(holds))
    assert isinstance(decision.commands[0], Reconfigure)
    assert not job.plans[-1].noticed
    nothing = job.tell(TrainingStopped(), StateReported({}))
    assert isinstance(nothing.commands[0], Reconfigure)
    assert job.plans[-1].kind is MigrationKind.ROLLBACK


def test_a_node_that_comes_back_holds_nothing() -> None:
    """Its new worker has to load whatever it is given."""
    job = Job(config()).with_nodes(8)
    job.tell(NodeLost("n0"), NodeJoined("n0"))
    assert job.state.holds["n0"] == frozenset() or "n0" in job.plans[-1].assignment
    assert not job.plans[-1].noticed


def test_the_same_events_give_the_same_plans() -> None:
    """Decisions are a function of what was told, in any order within an instant of joining."""

    def run(order: list[int]) -> list[tuple[object, ...]]:
        job = Job(config())
        job.tell(*(NodeJoined(f"n{index}") for index in order))
        job.tell(NodeLost("n2"), NodeLost("n5"))
        job.tell(NodeNoticed("n1", 99.0))
        return [(plan.layout, dict(plan.assignment), plan.fetches) for plan in job.plans]

    assert run([0, 1, 2, 3, 4, 5, 6, 7]) == run([7, 3, 1, 0, 2, 6, 5, 4])


def test_a_checkpointing_job_restarts_and_never_migrates() -> None:
    """A join and a notice each ask for a restart; the plan after it takes all state from the checkpoint."""
    job = Job(config(policy="checkpoint")).with_nodes(4)
    assert job.plans[0].kind is MigrationKind.START
    for event in (NodeJoined("n4"), NodeJoined("n5")):
        decision = job.tell(event)
    (restart,) = decision.commands
    assert isinstance(restart, Restart) and "n5 joined" in restart.why
    job.tell(NodeLost("n0"), TrainingStopped(), StateReported({}))
    plan = job.plans[-1]
    assert plan.kind is MigrationKind.ROLLBACK and not plan.noticed
    assert {fetch.source for fetch in plan.fetches} == {None}
    assert isinstance(job.tell(NodeNoticed(next(iter(plan.assignment)), 99.0)).commands[0], Restart)


def test_unknown_policies_are_refused() -> None:
    """By name, with those that there are."""
    with pytest.raises(ValueError, match="no policy 'magic'"):
        initial_state(config(policy="magic"))


class _Story:
    """Random but possible events for a job."""

    def __init__(self, job: Job) -> None:
        self.job, self.made = job, 0

    def event(self, choice: int, pick: int) -> list[Event]:
        nodes = sorted(self.job.state.nodes)
        chosen = nodes[pick % len(nodes)] if nodes else None
        if choice <= 2 and len(nodes) < 10:
            self.made += 1
            return [NodeJoined(f"m{self.made}")]
        if chosen is None:
            return [IntervalElapsed()]
        if choice == 3:
            return [NodeNoticed(chosen, self.job.now_s + 5)]
        if choice in (4, 5):
            return [NodeLost(chosen)]
        if choice == 6:
            return [NodeLost(node) for node in nodes[pick % len(nodes) :][:3]]
        if choice == 7:
            return [NoticeWithdrawn(chosen)]
        pending = self.job.state.pending
        if choice == 8 and pending is not None:
            return [GenerationLive(pending.generation)]
        if choice == 9 and pending is not None:
            return [MigrationFailed(pending.generation)]
        return [IntervalElapsed()]


@pytest.mark.parametrize("policy", ["parcae", "reactive"])
@given(events=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 20)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_story_keeps_plans_whole_and_training_never_forgotten(
    policy: str, events: list[tuple[int, int]]
) -> None:
    """Plans are whole (the job checks), and a job that could train never stands still without one."""
    settings_: ControllerConfig = config(policy=policy, nodes=10)
    job = Job(settings_, prompt=False)
    story = _Story(job)
    for choice, pick in events:
        job.tell(*story.event(choice, pick))
        state = job.state
        members_here = all(node in state.nodes for node in state.assignment)
        trains = state.layout is not None and members_here and not state.broken
        if not trains and state.pending is None:
            assert not settings_.profile.feasible(len(state.usable))
        if state.pending is not None:
            assert set(state.pending.assignment) <= set(state.nodes)
    generations = [plan.generation for plan in job.plans]
    assert generations == sorted(set(generations))


def test_a_step_touches_nothing_it_was_given() -> None:
    """The state before is the same after."""
    job = Job(config()).with_nodes(8)
    before = job.state
    nodes, holds = dict(before.nodes), dict(before.holds)
    step(job.config, before, [NodeLost("n0")], 5.0)
    assert (dict(before.nodes), dict(before.holds)) == (nodes, holds)


def test_more_nodes_than_were_asked_for_are_spares() -> None:
    """A noticed node trains on beside its replacement: one node too many must not upset the plan."""
    wanted = config().max_nodes
    job = Job(config()).with_nodes(wanted + 3)
    assert job.plans[0].layout.positions <= wanted
    assert job.tell(IntervalElapsed()).commands == ()


def test_liveput_is_a_throughput() -> None:
    """What is expected is above nothing and never above what the fastest layout does undisturbed."""
    job = Job(config()).with_nodes(8)
    fastest = config().profile.samples_per_s(Layout(4, 2))
    seen = [job.tell(IntervalElapsed()).liveput for _ in range(3)]
    job.tell(NodeLost("n1"))
    seen += [job.tell(IntervalElapsed()).liveput for _ in range(3)]
    assert all(0 < liveput <= fastest for liveput in seen)
