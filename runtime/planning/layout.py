"""Cutting a model's layers into stages, and sharing micro-batches among pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from runtime.planning.types import Layout

Cuts = tuple[tuple[int, ...], ...]


def cut_layers(weights: Sequence[float], stages: int) -> Cuts:
    """Contiguous stages whose heaviest one is as light as can be, and the rest as even as that allows.

    `weights[i]` is the work of layer i, in any one unit. Every stage gets at least one layer; the same
    input always gives the same cuts.

    Raises:
        ValueError: more stages than layers, or none.
    """
    if not 1 <= stages <= len(weights):
        raise ValueError(
            f"{len(weights)} layers cannot be cut into {stages} stages: a stage is a layer or more"
        )
    return _cut(tuple(float(weight) for weight in weights), stages)


@lru_cache(maxsize=4096)
def _cut(weights: tuple[float, ...], stages: int) -> Cuts:
    count = len(weights)
    before = [0.0]
    for weight in weights:
        before.append(before[-1] + weight)
    bound = _lightest_heaviest(before, stages)
    # Among cuts under the bound, least sum of squares: an even load evens out what a node must hold.
    infinite = float("inf")
    cost = [0.0] + [infinite] * count
    came_from: list[list[int]] = []
    for _ in range(stages):
        new_cost, origin = [infinite] * (count + 1), [-1] * (count + 1)
        for end in range(1, count + 1):
            for start in range(end - 1, -1, -1):
                load = before[end] - before[start]
                if load > bound:
                    break
                total = cost[start] + load * load
                if total < new_cost[end]:
                    new_cost[end], origin[end] = total, start
        cost = new_cost
        came_from.append(origin)
    cuts: list[tuple[int, ...]] = []
    end = count
    for origin in reversed(came_from):
        start = origin[end]
        cuts.append(tuple(range(start, end)))
        end = start
    return tuple(reversed(cuts))


def _lightest_heaviest(before: Sequence[float], stages: int) -> float:
    """The least bound that contiguous non-empty stages can all stay under (with room for rounding)."""
    count = len(before) - 1
    infinite = float("inf")
    best = [0.0] + [infinite] * count
    for _ in range(stages):
        row = [infinite] * (count + 1)
        for end in range(1, count + 1):
            for start in range(end - 1, -1, -1):
                load = before[end] - before[start]
                if load >= row[end]:
                    break
                row[end] = min(row[end], max(best[start], load))
        best = row
    return best[count] * (1 + 1e-12)


def pipeline_micro_batches(layout: Layout, micro_batches: int) -> tuple[tuple[int, ...], ...]:
    """Which micro-batches each pipeline runs: k goes to pipeline k * D // M; shares differ by one at most."""
    shares: list[list[int]] = [[] for _ in range(layout.pipelines)]
    for index in range(micro_batches):
        shares[index * layout.pipelines // micro_batches].append(index)
    return tuple(tuple(share) for share in shares)


def layout_problem(layout: Layout, layers: int, micro_batches: int, nodes: int | None = None) -> str | None:
    """Why a layout is impossible, with the arithmetic; None if it is possible."""
    pipelines, stages = layout.pipelines, layout.stages
    if pipelines < 1 or stages < 1:
        return f"{layout}: pipelines and stages start at 1"
    if stages > layers:
        return f"{layout}: {stages} stages out of {layers} layers: a stage is a layer or more"
    if pipelines > micro_batches:
        return f"{layout}: {pipelines} pipelines but {micro_batches} micro-batches: each needs one or more"
    if nodes is not None and layout.positions > nodes:
        return f"{layout}: {pipelines} x {stages} = {layout.positions} nodes needed, {nodes} here"
    return None
