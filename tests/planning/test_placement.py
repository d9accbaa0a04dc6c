"""Instances with several GPUs: the law of what goes with them, and which positions share one."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.planning.controller import step
from runtime.planning.layout import cut_layers
from runtime.planning.placement import (
    Placement,
    along_pipelines,
    along_stages,
    chosen_placement,
    instance_of,
    instances_needed,
    worker_names,
)
from runtime.planning.preemption import no_stage_lost, stage_ways
from runtime.planning.programme import Programme
from runtime.planning.types import (
    Event,
    IntervalElapsed,
    Layout,
    MigrationKind,
    NodeJoined,
    NodeLost,
    NodeNoticed,
    Position,
    StateReported,
    TrainingStopped,
)
from runtime.planning.whole_instances import assign_instances
from tests.planning.fixtures import Job, config, tables

GPUS = st.sampled_from([1, 2, 3, 4, 8])
LAYERS = 6
BYTES = [5, 1, 4, 2, 8, 3]


def _left(placement: Placement, gone: tuple[int, ...]) -> list[int]:
    """The replicas that each stage has left when these slots go; numbers past the last slot are spares."""
    lost = {at for number in gone if number < len(placement.slots) for at in placement.slots[number]}
    layout = placement.layout
    return [
        sum(Position(pipeline, stage) not in lost for pipeline in range(layout.pipelines))
        for stage in range(layout.stages)
    ]


@given(st.integers(1, 5), st.integers(1, 6), GPUS, st.integers(0, 2), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_law_is_that_of_every_subset_of_instances(
    pipelines: int, stages: int, gpus: int, spares: int, by_pipeline: bool
) -> None:
    """Against counting: stages wiped out, replicas kept and pipelines intact, for any number of losses."""
    walk = along_pipelines if by_pipeline else along_stages
    placement = walk(Layout(pipelines, stages), gpus)
    slots = len(placement.slots)
    count = slots + spares
    if count > 9:
        return
    for losses in range(count + 1):
        lefts = [_left(placement, gone) for gone in combinations(range(count), losses)]
        kept = sum(min(left) > 0 for left in lefts) / len(lefts)
        assert placement.no_stage_lost(count, losses) == pytest.approx(kept)
        wiped = sum(left.count(0) for left in lefts) / len(lefts)
        assert placement.wiped_stages(count, losses) == pytest.approx(wiped)
        for target in range(1, pipelines + 1):
            among_slots = [_left(placement, gone) for gone in combinations(range(slots), min(losses, slots))]
            ways = sum(min(left) >= target for left in among_slots)
            assert placement.kept_ways(target, losses)[min(losses, slots)] == ways
        intact = 0
        for gone in combinations(range(count), losses):
            lost = {at.pipeline for number in gone if number < slots for at in placement.slots[number]}
            intact += pipelines - len(lost)
        assert placement.intact_pipelines(count, losses) == pytest.approx(intact / len(lefts))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_with_one_gpu_it_is_the_law_of_single_nodes(pipelines: int, stages: int, losses: int) -> None:
    """Both ways to compute it agree."""
    placement = chosen_placement(Layout(pipelines, stages), 1)
    for target in range(1, pipelines + 1):
        assert placement.kept_ways(target, losses) == stage_ways(pipelines, stages, target, losses)


def test_a_regular_placement_is_a_layout_of_instances() -> None:
    """8 pipelines of 12 stages on instances of 4 GPUs: nodes of one GPU under 8 x 3."""
    placement = chosen_placement(Layout(8, 12), 4)
    for losses in range(12):
        assert placement.no_stage_lost(30, losses) == pytest.approx(no_stage_lost(30, 8, 3, losses))


@given(st.integers(1, 12), st.integers(1, 12), GPUS)
@settings(max_examples=100, deadline=None)
def test_every_position_has_its_place_and_no_gpu_is_wasted(pipelines: int, stages: int, gpus: int) -> None:
    """As few instances as can be, whatever the layout."""
    layout = Layout(pipelines, stages)
    placement = chosen_placement(layout, gpus)
    assert len(placement.slots) == instances_needed(layout, gpus) == -(-layout.positions // gpus)
    assert sorted(at for slot in placement.slots for at in slot) == [
        Position(pipeline, stage) for pipeline in range(pipelines) for stage in range(stages)
    ]
    assert all(len(slot) == gpus for slot in placement.slots[:-1])


@given(st.integers(1, 8), st.integers(1, 12), GPUS)
@settings(max_examples=80, deadline=None)
def test_the_chosen_placement_is_the_more_robust_one(pipelines: int, stages: int, gpus: int) -> None:
    """However many go, no other walk leaves more pipelines whole where it loses no fewer stages."""
    layout = Layout(pipelines, stages)
    chosen = chosen_placement(layout, gpus)
    count = len(chosen.slots)
    for other in (along_pipelines(layout, gpus), along_stages(layout, gpus)):
        for losses in range(count + 1):
            assert chosen.wiped_stages(count, losses) <= other.wiped_stages(count, losses) + 1e-12


def test_adjacent_stages_survive_what_replicas_do_not() -> None:
    """4 x 8 on 8 instances of 4 GPUs: one lost never costs a stage; had it held replicas, it always would."""
    rows, columns = along_pipelines(Layout(4, 8), 4), along_stages(Layout(4, 8), 4)
    assert chosen_placement(Layout(4, 8), 4) == rows
    assert (rows.no_stage_lost(8, 1), columns.no_stage_lost(8, 1)) == (1.0, 0.0)
    assert rows.no_stage_lost(8, 3) == 1.0
    assert (rows.intact_pipelines(8, 1), columns.intact_pipelines(8, 1)) == (3.0, 0.0)
    assert rows.words == "a node's 4 GPUs hold 4 stages of 1 pipeline: no stage is lost before 4 nodes go"


def test_a_law_that_would_take_too_long_is_bounded_from_below() -> None:
    """32 pipelines of 33 stages on 264 instances: deep losses get a bound below the exact law."""
    placement = chosen_placement(Layout(32, 33), 4)
    exact = placement.kept_ways(31, 6)
    bound = placement.kept_ways(29, 6)
    assert bound[:4] == tuple(stage_ways(264, 1, 261, 6)[:4]) and bound[4:] == (0, 0, 0)
    assert exact[1] == bound[1] == 264 and exact[2] < bound[2]


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([2, 3]),
    st.lists(st.sets(st.integers(0, LAYERS - 1)), min_size=12, max_size=12),
)
@settings(max_examples=80, deadline=None)
def test_no_way_to_place_whole_instances_moves_fewer_bytes(
    pipelines: int, stages: int, gpus: int, held: list[set[int]]
) -> None:
    """Against every way to send instances to places, each seating its workers as well as can be."""
    layout, cuts = Layout(pipelines, stages), cut_layers([1.0] * LAYERS, stages)
    names = [f"i{index}" for index in range(12 // gpus)][:4]
    placement = chosen_placement(layout, gpus)
    if len(placement.slots) > len(names):
        return
    workers = [worker for name in names for worker in worker_names(name, gpus)]
    holds = {worker: frozenset(layers) for worker, layers in zip(workers, held, strict=False)}

    def missing(worker: str, stage: int) -> int:
        return sum(BYTES[layer] for layer in set(cuts[stage]) - holds[worker])

    def place(name: str, slot: tuple[Position, ...]) -> int:
        seated = permutations(worker_names(name, gpus), len(slot))
        return min(
            sum(missing(worker, at.stage) for worker, at in zip(order, slot, strict=True)) for order in seated
        )

    best = min(
        sum(place(name, slot) for name, slot in zip(order, placement.slots, strict=True))
        for order in permutations(names, len(placement.slots))
    )
    found = assign_instances(workers, holds, layout, cuts, BYTES, {}, gpus)
    assert sum(missing(worker, at.stage) for worker, at in found.items()) == best
    together: dict[str, set[Position]] = {}
    for worker, at in found.items():
        together.setdefault(instance_of(worker, gpus), set()).add(at)
    assert sorted(map(sorted, together.values())) == sorted(sorted(slot) for slot in placement.slots)


def _join(count: int, gpus: int) -> list[Event]:
    return [NodeJoined(worker) for index in range(count) for worker in worker_names(f"i{index}", gpus)]


def test_an_instance_that_goes_takes_its_workers_along_and_the_rest_stays() -> None:
    """One of four instances of two GPUs is lost: its positions are refilled, and only they fetch."""
    job = Job(config(nodes=4, gpus=2))
    job.tell(*_join(4, 2))
    first = job.plans[-1]
    assert first.kind is MigrationKind.START and first.layout.positions > 4
    assert "no stage is lost before" in first.why and first.why.count("joined") == 3
    assert job.state.instances == 4
    held = {worker: frozenset(first.cuts[at.stage]) for worker, at in first.assignment.items()}
    gone = instance_of(next(iter(first.assignment)), 2)
    left = {worker: layers for worker, layers in held.items() if instance_of(worker, 2) != gone}
    job.tell(*map(NodeLost, worker_names(gone, 2)), TrainingStopped(), StateReported(left))
    plan = job.plans[-1]
    assert plan.why.startswith(f"{gone} lost: ")
    assert plan.kind is not MigrationKind.ROLLBACK and not plan.noticed
    assert instances_needed(plan.layout, 2) <= 3
    if plan.layout.stages == first.layout.stages:
        stayed = {worker for worker, at in plan.assignment.items() if first.assignment.get(worker) == at}
        assert not stayed & {fetch.node for fetch in plan.fetches}


def test_an_instance_counts_only_when_all_its_workers_are_here() -> None:
    """A worker that died alone takes its instance out of the count until it is back."""
    settings_ = config(nodes=4, gpus=2)
    job = Job(settings_)
    job.tell(*_join(3, 2), NodeJoined("i3/0"))
    assert job.state.instances == 3
    job.tell(NodeJoined("i3/1"))
    assert job.state.instances == 4
    decision = step(settings_, job.state, [IntervalElapsed()], job.now_s + 1)
    assert decision.state.history[-1] == 4
    job.tell(NodeNoticed("i3/0", 99.0), NodeNoticed("i3/1", 99.0))
    assert job.state.instances == 3 and not any("i3" in worker for worker in job.plans[-1].assignment)


@given(st.integers(1, 6), st.integers(2, 4))
@settings(max_examples=10, deadline=None)
def test_the_classes_of_losses_add_up_to_one(losses: int, gpus: int) -> None:
    """For every layout and availability, also where the law is only bounded."""
    profile, costs = tables("gpt2-1.5b", "measured", 8 * gpus)
    programme = Programme(profile, costs, profile.contenders(4, 8, 32, gpus), 8, gpus=gpus)
    law = programme._law(losses)
    law.fill(range(9))
    assert law.chances.min() >= 0
    assert abs(law.chances.sum(axis=0) - 1).max() < 1e-9
