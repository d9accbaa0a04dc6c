"""The exact law of preemptions against brute force over every subset."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.planning.liveput import liveput
from runtime.planning.preemption import (
    intact_pipelines,
    need_distribution,
    no_stage_lost,
    survivors_at_least,
)
from runtime.planning.types import Layout

SHAPES = [(n, d, p) for n in range(1, 10) for d in range(1, n + 1) for p in range(1, n // d + 1)]


@pytest.mark.parametrize("nodes", range(1, 10))
def test_the_laws_agree_with_every_subset(nodes: int) -> None:
    """For every layout of up to nine nodes, counting all subsets of losses gives the same law."""
    for _, pipelines, stages in (shape for shape in SHAPES if shape[0] == nodes):
        members = pipelines * stages
        for losses in range(nodes + 1):
            needs: dict[int, Counter[int]] = {target: Counter() for target in range(1, pipelines + 2)}
            intact: Counter[int] = Counter()
            least: Counter[int] = Counter()
            for gone in combinations(range(nodes), losses):
                alive = [pipelines] * stages
                whole = [True] * pipelines
                for node in gone:
                    if node < members:
                        alive[node % stages] -= 1
                        whole[node // stages] = False
                for target, counter in needs.items():
                    counter[sum(max(0, target - count) for count in alive)] += 1
                intact[sum(whole)] += 1
                least[min(alive)] += 1
            total = comb(nodes, losses)
            for target, counter in needs.items():
                law = need_distribution(nodes, pipelines, stages, losses, target)
                assert law == pytest.approx(
                    {need: count / total for need, count in counter.items()}, abs=1e-12
                )
                expected = sum(count for low, count in least.items() if low >= target) / total
                assert survivors_at_least(nodes, pipelines, stages, losses, target) == pytest.approx(expected)
            law = intact_pipelines(nodes, pipelines, stages, losses)
            assert law == pytest.approx({whole: count / total for whole, count in intact.items()}, abs=1e-12)


def test_the_papers_liveput_example_is_exact() -> None:
    """Six instances: 2x3 keeps 100, 50, 20 after 0, 1, 2 losses, and 3x2 keeps 90, 60, 36."""
    deep = [liveput(6, Layout(2, 3), {losses: 1.0}, {1: 50, 2: 100}) for losses in range(3)]
    wide = [liveput(6, Layout(3, 2), {losses: 1.0}, {1: 30, 2: 60, 3: 90}) for losses in range(3)]
    assert deep == pytest.approx([100, 50, 20])
    assert wide == pytest.approx([90, 60, 36])


shapes = st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(0, 6)).flatmap(
    lambda shape: st.tuples(
        st.just(shape[0] * shape[1] + shape[2]),
        st.just(shape[0]),
        st.just(shape[1]),
        st.integers(0, shape[0] * shape[1] + shape[2]),
    )
)


@given(shapes)
@settings(max_examples=60, deadline=None)
def test_probabilities_sum_to_one(shape: tuple[int, int, int, int]) -> None:
    """Every law is a law, whatever the shape."""
    nodes, pipelines, stages, losses = shape
    assert sum(intact_pipelines(nodes, pipelines, stages, losses).values()) == pytest.approx(1)
    assert sum(need_distribution(nodes, pipelines, stages, losses, pipelines).values()) == pytest.approx(1)
    assert 0 <= no_stage_lost(nodes, pipelines, stages, losses) <= 1


@given(shapes)
@settings(max_examples=60, deadline=None)
def test_liveput_never_rises_with_more_losses(shape: tuple[int, int, int, int]) -> None:
    """One more loss never leaves more throughput."""
    nodes, pipelines, stages, losses = shape
    if losses == 0:
        return
    rates = {count: float(count) for count in range(1, pipelines + 1)}
    layout = Layout(pipelines, stages)
    fewer = liveput(nodes, layout, {losses - 1: 1.0}, rates)
    assert liveput(nodes, layout, {losses: 1.0}, rates) <= fewer + 1e-12


small = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2)).filter(
    lambda shape: shape[0] * shape[1] + shape[2] <= 8
)
weights = st.lists(st.floats(0, 1), min_size=9, max_size=9)


@given(small, weights, st.lists(st.floats(0, 50), min_size=3, max_size=3))
@settings(max_examples=60, deadline=None)
def test_liveput_over_a_distribution_agrees_with_every_subset(
    shape: tuple[int, int, int], chances: list[float], steps: list[float]
) -> None:
    """Whatever the law of the losses and the throughputs: the mean over all subsets, weighted."""
    pipelines, stages, spares = shape
    nodes = pipelines * stages + spares
    total = sum(chances[: nodes + 1])
    if not total:
        return
    losses = {count: chances[count] / total for count in range(nodes + 1)}
    rates = {count: sum(steps[:count]) for count in range(1, pipelines + 1)}
    expected = 0.0
    for count, chance in losses.items():
        for gone in combinations(range(nodes), count):
            broken = {node // stages for node in gone if node < pipelines * stages}
            whole = pipelines - len(broken)
            expected += chance / comb(nodes, count) * (rates[whole] if whole else 0.0)
    assert liveput(nodes, Layout(pipelines, stages), losses, rates) == pytest.approx(expected)


@given(shapes, weights)
@settings(max_examples=60, deadline=None)
def test_liveput_never_rises_when_every_chance_moves_to_one_more_loss(
    shape: tuple[int, int, int, int], chances: list[float]
) -> None:
    """The same for whole distributions."""
    nodes, pipelines, stages, _ = shape
    chances = chances[:nodes]
    total = sum(chances)
    if not total:
        return
    rates = {count: float(count) for count in range(1, pipelines + 1)}
    fewer = {count: chance / total for count, chance in enumerate(chances)}
    more = {count + 1: chance for count, chance in fewer.items()}
    layout = Layout(pipelines, stages)
    assert liveput(nodes, layout, more, rates) <= liveput(nodes, layout, fewer, rates) + 1e-9


def test_a_layout_that_does_not_fit_is_refused_with_the_arithmetic() -> None:
    """The message multiplies it out."""
    with pytest.raises(ValueError, match="2 x 3 = 6 nodes needed, 5 here"):
        intact_pipelines(5, 2, 3, 1)
