"""Cutting layers into stages, and sharing micro-batches."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.planning.layout import cut_layers, layout_problem, pipeline_micro_batches
from runtime.planning.types import Layout

weights_and_stages = st.lists(st.floats(0.01, 100), min_size=1, max_size=14).flatmap(
    lambda weights: st.tuples(st.just(weights), st.integers(1, len(weights)))
)


def _heaviest(weights: list[float], cuts: tuple[tuple[int, ...], ...]) -> float:
    return max(sum(weights[layer] for layer in stage) for stage in cuts)


def _every_cut(count: int, stages: int) -> list[tuple[tuple[int, ...], ...]]:
    if stages == 1:
        return [(tuple(range(count)),)]
    return [
        (*rest, tuple(range(start, count)))
        for start in range(stages - 1, count)
        for rest in _every_cut(start, stages - 1)
    ]


@given(weights_and_stages)
@settings(max_examples=80, deadline=None)
def test_cuts_are_contiguous_and_leave_no_layer_out(case: tuple[list[float], int]) -> None:
    """Every layer is in one stage, in order, and no stage is empty."""
    weights, stages = case
    cuts = cut_layers(weights, stages)
    assert [layer for stage in cuts for layer in stage] == list(range(len(weights)))
    assert len(cuts) == stages and all(cuts)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_no_cut_has_a_lighter_heaviest_stage(weights: list[float], stages: int) -> None:
    """Against every possible cut."""
    stages = min(stages, len(weights))
    best = min(_heaviest(weights, cuts) for cuts in _every_cut(len(weights), stages))
    assert _heaviest(weights, cut_layers(weights, stages)) == pytest.approx(best)


@given(st.integers(1, 40), st.integers(1, 40))
def test_micro_batches_are_shared_evenly_and_in_order(micro_batches: int, pipelines: int) -> None:
    """Each micro-batch has one pipeline, and shares differ by one at most."""
    pipelines = min(pipelines, micro_batches)
    shares = pipeline_micro_batches(Layout(pipelines, 1), micro_batches)
    assert [index for share in shares for index in share] == list(range(micro_batches))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_an_impossible_layout_is_explained_with_its_arithmetic() -> None:
    """Too deep, too wide, too large: each says the numbers."""
    assert layout_problem(Layout(2, 3), 8, 16, 6) is None
    assert "8 layers" in str(layout_problem(Layout(1, 9), 8, 16))
    assert "16 micro-batches" in str(layout_problem(Layout(17, 1), 8, 16))
    assert "2 x 3 = 6 nodes needed, 5 here" in str(layout_problem(Layout(2, 3), 8, 16, 5))
    with pytest.raises(ValueError, match="8 layers cannot be cut into 9 stages"):
        cut_layers([1.0] * 8, 9)
