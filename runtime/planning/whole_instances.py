"""Who takes which position where instances have several GPUs: whole instances, by the chosen placement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from runtime.planning.layout import Cuts
from runtime.planning.placement import SEPARATOR, Placement, chosen_placement, worker_names
from runtime.planning.types import Layout, Position

NOTHING: frozenset[int] = frozenset()

Holdings = tuple[frozenset[int], ...]  # what each worker of an instance holds


def whole(workers: Sequence[str], gpus: int) -> tuple[str, ...]:
    """The instances of which every worker is among these, sorted."""
    counts: dict[str, int] = {}
    for worker in workers:
        instance = worker.rpartition(SEPARATOR)[0]
        counts[instance] = counts.get(instance, 0) + 1
    return tuple(sorted(instance for instance, count in counts.items() if count == gpus))


def assign_instances(
    usable: Sequence[str],
    holds: Mapping[str, frozenset[int]],
    layout: Layout,
    cuts: Cuts,
    layer_bytes: Sequence[int],
    previous: Mapping[str, Position],
    gpus: int,
) -> dict[str, Position]:
    """Which worker takes which position, an instance's together, so that the least bytes move.

    Instances that hold just what their place asks for stay in it.

    Raises:
        ValueError: there are fewer whole instances than the layout needs.
    """
    placement = chosen_placement(layout, gpus)
    instances = whole(usable, gpus)
    if len(instances) < len(placement.slots):
        raise ValueError(f"{layout}: {len(placement.slots)} nodes needed, {len(instances)} here")
    stages = [frozenset(stage) for stage in cuts]
    assignment = _unmoved(instances, holds, placement, stages, previous, gpus)
    taken = set(assignment.values())
    slots = [slot for slot in placement.slots if slot[0] not in taken]
    free = [name for name in instances if assignment.keys().isdisjoint(worker_names(name, gpus))]
    if slots:
        seats = _Seats(stages, layer_bytes)
        held = [tuple(holds.get(worker, NOTHING) for worker in worker_names(name, gpus)) for name in free]
        wanted = [tuple(position.stage for position in slot) for slot in slots]
        for row, column in _cheapest([[seats.bytes(one, slot) for slot in wanted] for one in held]):
            workers = worker_names(free[row], gpus)
            for seat, position in zip(seats.order(held[row], wanted[column]), slots[column], strict=True):
                assignment[workers[seat]] = position
    return {worker: assignment[worker] for worker in sorted(assignment)}


def _unmoved(
    instances: Sequence[str],
    holds: Mapping[str, frozenset[int]],
    placement: Placement,
    stages: Sequence[frozenset[int]],
    previous: Mapping[str, Position],
    gpus: int,
) -> dict[str, Position]:
    """The workers of the instances that are in a place of this very placement, and hold just what it needs.

    Such an instance costs nothing there. Were it sent elsewhere, whoever came in its place would have to
    fetch at least as much as it saves.
    """
    slots = {frozenset(slot) for slot in placement.slots}
    kept: dict[str, Position] = {}
    for instance in instances:
        before = {worker: previous[worker] for worker in worker_names(instance, gpus) if worker in previous}
        fits = frozenset(before.values()) in slots and all(
            holds.get(worker) == stages[position.stage] for worker, position in before.items()
        )
        if fits:
            kept.update(before)
    return kept


class _Seats:
    """For an instance and a place: which worker takes which of its positions, and the bytes that it lacks."""

    def __init__(self, stages: Sequence[frozenset[int]], layer_bytes: Sequence[int]) -> None:
        self._stages, self._layer_bytes = stages, layer_bytes
        self._found: dict[tuple[Holdings, tuple[int, ...]], tuple[int, tuple[int, ...]]] = {}

    def bytes(self, held: Holdings, wanted: tuple[int, ...]) -> int:
        """What the workers lack of these stages, at best."""
        return self._seat(held, wanted)[0]

    def order(self, held: Holdings, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """For each of these stages, the worker that takes it."""
        return self._seat(held, wanted)[1]

    def _seat(self, held: Holdings, wanted: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        key = (held, wanted)
        if key not in self._found:
            lacking = [
                [sum(self._layer_bytes[layer] for layer in self._stages[stage] - have) for stage in wanted]
                for have in held
            ]
            pairs = sorted(_cheapest(lacking), key=lambda pair: pair[1])
            self._found[key] = (
                sum(lacking[row][column] for row, column in pairs),
                tuple(row for row, _ in pairs),
            )
        return self._found[key]


def _cheapest(price: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """(row, column) for every column, each with a row of its own, at the least sum."""
    table = np.array(price, dtype=float)
    if table.shape[0] == 1 or not np.ptp(table, axis=0).any():
        return [(index, index) for index in range(table.shape[1])]  # all rows are alike
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(table)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
