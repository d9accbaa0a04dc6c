"""Assignments that move the least, and fetches from whoever holds the state."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.planning.layout import cut_layers
from runtime.planning.migration import assign, plan_moves, sketch_change
from runtime.planning.types import Layout, MigrationKind, Position
from tests.planning.fixtures import tables

LAYERS = 6
BYTES = [5, 1, 4, 2, 8, 3]


@given(
    st.lists(st.sets(st.integers(0, LAYERS - 1)), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_no_assignment_moves_fewer_bytes(held: list[set[int]], pipelines: int, stages: int) -> None:
    """Against every way to seat the nodes, whatever they hold."""
    layout = Layout(pipelines, stages)
    nodes = {f"n{index}": frozenset(layers) for index, layers in enumerate(held)}
    if layout.positions > len(nodes):
        return
    cuts = cut_layers([1.0] * LAYERS, stages)

    def missing(node: str, stage: int) -> int:
        return sum(BYTES[layer] for layer in set(cuts[stage]) - nodes[node])

    seats = [stage for _ in range(pipelines) for stage in range(stages)]
    best = min(
        sum(missing(node, stage) for node, stage in zip(order, seats, strict=True))
        for order in permutations(nodes, len(seats))
    )
    chosen = assign(sorted(nodes), nodes, layout, cuts, BYTES, {})
    assert len(set(chosen.values())) == layout.positions
    assert sum(missing(node, position.stage) for node, position in chosen.items()) == best


def test_nothing_moves_when_nothing_changed() -> None:
    """The same layout on the same nodes: everybody stays, no byte moves."""
    profile, _ = tables("gpt-tiny", "measured", 8)
    layout = Layout(4, 2)
    nodes = [f"n{index}" for index in range(8)]
    cuts = profile.cuts(2)
    seats = {node: Position(index % 4, index // 4) for index, node in enumerate(nodes)}
    holds = {node: frozenset(cuts[position.stage]) for node, position in seats.items()}
    moves = plan_moves(profile, layout, nodes, holds, layout, seats, noticed=True)
    assert moves.assignment == seats and moves.fetches == () and moves.bytes_moved == 0
    assert moves.change.kind is MigrationKind.INTRA_STAGE


@given(st.integers(0, 1000), st.integers(0, 4), st.sampled_from(["gpt3-6b", "bert-large", "vgg19"]))
@settings(max_examples=40, deadline=None)
def test_a_plan_carried_out_and_made_again_moves_nothing(pick: int, spares: int, model: str) -> None:
    """Whatever the layout and however many spares: nothing changed, so nobody moves and no byte does."""
    profile, _ = tables(model, "artifact", 24)
    layout = profile.layouts[pick % len(profile.layouts)]
    nodes = [f"n{index:02d}" for index in range(layout.positions + spares)]
    empty: dict[str, frozenset[int]] = dict.fromkeys(nodes, frozenset())
    first = plan_moves(profile, layout, nodes, empty, None, {}, noticed=True, started=False)
    holds = {
        node: frozenset(first.cuts[first.assignment[node].stage]) if node in first.assignment else frozenset()
        for node in nodes
    }
    again = plan_moves(profile, layout, nodes, holds, layout, first.assignment, noticed=True)
    assert again.assignment == first.assignment
    assert (again.fetches, again.bytes_moved, again.change.kind) == ((), 0, MigrationKind.INTRA_STAGE)


def test_the_load_of_sending_is_shared() -> None:
    """Three holders and three that need: each sends about as much."""
    profile, _ = tables("gpt-tiny", "measured", 12)
    cuts = profile.cuts(2)
    seats = {f"a{index}": Position(index // 2, index % 2) for index in range(6)}
    holds = {node: frozenset(cuts[position.stage]) for node, position in seats.items()}
    holds |= {f"b{index}": frozenset() for index in range(6)}
    moves = plan_moves(profile, Layout(6, 2), sorted(holds), holds, Layout(3, 2), seats, noticed=True)
    sent: dict[str, int] = {}
    for fetch in moves.fetches:
        assert fetch.source is not None
        sent[fetch.source] = sent.get(fetch.source, 0) + profile.layer_bytes[fetch.layer]
    assert set(sent) == {f"a{index}" for index in range(6)}
    assert max(sent.values()) <= 1.2 * min(sent.values())


def test_too_few_nodes_are_refused() -> None:
    """With the arithmetic."""
    with pytest.raises(ValueError, match="4x2: 8 nodes needed, 1 here"):
        assign(["n0"], {}, Layout(4, 2), cut_layers([1.0] * 8, 2), [1] * 8, {})


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_quick_sketch_of_a_change_agrees_with_the_real_moves(first: int, second: int, lost: int) -> None:
    """Kind, what is wiped out and, at the same depth, what a node misses are the same."""
    profile, _ = tables("bert-large", "artifact", 24)
    layouts = profile.feasible(24)
    before, after = layouts[first % len(layouts)], layouts[second % len(layouts)]
    nodes = [f"n{index:02d}" for index in range(26)]
    cuts = profile.cuts(before.stages)
    seats = {
        node: Position(index // before.stages, index % before.stages)
        for index, node in enumerate(nodes[: before.positions])
    }
    gone = set(nodes[:lost])
    alive = [node for node in nodes if node not in gone]
    holds = {node: frozenset(cuts[seats[node].stage]) if node in seats else frozenset() for node in alive}
    if after.positions > len(alive):
        return
    survivors = [
        sum(1 for node, position in seats.items() if position.stage == stage and node not in gone)
        for stage in range(before.stages)
    ]
    real = plan_moves(profile, after, alive, holds, before, seats, noticed=False).change
    quick = sketch_change(profile, before, survivors, len(gone & set(seats)), after, noticed=False)
    assert quick.kind == real.kind
    assert (quick.wiped_bytes, quick.lost_positions) == (real.wiped_bytes, real.lost_positions)
    if before.stages == after.stages and not real.wiped_bytes:
        assert quick.missing_bytes == real.missing_bytes
