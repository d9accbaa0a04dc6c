"""Instances with several GPUs: which positions share one, and how many replicas go when instances go.

A worker, one GPU, takes a position; an instance, all its workers, is what the cloud takes away. Positions are
walked one after another and every `gpus` of them share an instance, so a layout always needs as few instances
as can be. Two walks are weighed against each other: along the pipelines (an instance holds adjacent stages of
one pipeline) and along the stages (it holds replicas of one stage).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import comb

from runtime.planning.types import Layout, Position

SEPARATOR = "/"
# Partial sums that a law may keep at once; irregular placements of deep losses would need more. Then a bound
# is used: every instance that goes hits the same stage.
MOST_STATES = 200

Hits = tuple[int, ...]  # for each stage, how many of its replicas one instance holds


def worker_names(instance: str, gpus: int) -> tuple[str, ...]:
    """The workers of an instance: `i3` with one GPU, `i3/0`, `i3/1`, .. with several."""
    return (instance,) if gpus == 1 else tuple(f"{instance}{SEPARATOR}{gpu}" for gpu in range(gpus))


def instance_of(worker: str, gpus: int) -> str:
    """The instance that a worker lives and dies with."""
    return worker if gpus == 1 else worker.rpartition(SEPARATOR)[0]


def instances_of(workers: Iterable[str], gpus: int) -> tuple[str, ...]:
    """The instances of these workers, each once, in order of appearance."""
    return tuple(dict.fromkeys(instance_of(worker, gpus) for worker in workers))


def instances_needed(layout: Layout, gpus: int) -> int:
    """How many instances hold the layout; the last one may have GPUs over."""
    return -(-layout.positions // gpus)


@dataclass(frozen=True)
class Placement:
    """Which positions share an instance: `slots[i]` are those of one, `gpus` of them or fewer in the last."""

    layout: Layout
    gpus: int
    slots: tuple[tuple[Position, ...], ...]

    @cached_property
    def kinds(self) -> tuple[tuple[Hits, int], ...]:
        """What the instances take away from each stage, and how many instances are alike in that."""
        found: dict[Hits, int] = {}
        for slot in self.slots:
            hits = [0] * self.layout.stages
            for position in slot:
                hits[position.stage] += 1
            found[tuple(hits)] = found.get(tuple(hits), 0) + 1
        return tuple(sorted(found.items(), key=lambda kind: [not hit for hit in kind[0]]))

    @cached_property
    def holders(self) -> tuple[int, ...]:
        """For each stage, on how many instances its replicas are: so many must go before it is lost."""
        return tuple(
            sum(count for hits, count in self.kinds if hits[stage]) for stage in range(self.layout.stages)
        )

    @cached_property
    def breadths(self) -> tuple[int, ...]:
        """For each pipeline, on how many instances it is: one of them lost breaks it."""
        touched: list[set[int]] = [set() for _ in range(self.layout.pipelines)]
        for number, slot in enumerate(self.slots):
            for position in slot:
                touched[position.pipeline].add(number)
        return tuple(len(numbers) for numbers in touched)

    def wiped_stages(self, instances: int, losses: int) -> float:
        """How many stages lose every replica, expected, when `losses` of `instances` go."""
        ways = sum(comb(instances - held, losses - held) for held in self.holders if held <= losses)
        return ways / comb(instances, losses)

    def intact_pipelines(self, instances: int, losses: int) -> float:
        """How many pipelines lose no worker, expected: the throughput left, in pipelines."""
        return sum(comb(instances - held, losses) for held in self.breadths) / comb(instances, losses)

    def kept_ways(self, target: int, losses: int) -> tuple[int, ...]:
        """In how many ways 0..`losses` of the slots can go so that every stage keeps `target` replicas.

        Exact, unless it would take more than MOST_STATES partial sums: then a lower bound.
        """
        return _kept_ways(self.kinds, self.layout.pipelines - target, losses)

    def no_stage_lost(self, instances: int, losses: int) -> float:
        """The probability that every stage keeps a replica when `losses` of `instances` go."""
        spares = instances - len(self.slots)
        ways = self.kept_ways(1, losses)
        kept = sum(way * comb(spares, losses - gone) for gone, way in enumerate(ways))
        return kept / comb(instances, losses)

    @property
    def words(self) -> str:
        """How the instances are filled, and what that is good for."""
        block, held = self.slots[0], min(self.holders)
        stages, pipelines = len({p.stage for p in block}), len({p.pipeline for p in block})
        what = f"{_number(stages, 'stage')} of {_number(pipelines, 'pipeline')}"
        return f"a node's {self.gpus} GPUs hold {what}: no stage is lost before {_number(held, 'node')} go"


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def along_pipelines(layout: Layout, gpus: int) -> Placement:
    """An instance holds adjacent stages of a pipeline, and where that ends goes on with the next."""
    walk = [Position(d, p) for d in range(layout.pipelines) for p in range(layout.stages)]
    return Placement(layout, gpus, _cut(walk, gpus))


def along_stages(layout: Layout, gpus: int) -> Placement:
    """An instance holds replicas of a stage, and where those end goes on with the next."""
    walk = [Position(d, p) for p in range(layout.stages) for d in range(layout.pipelines)]
    return Placement(layout, gpus, _cut(walk, gpus))


def _cut(walk: list[Position], gpus: int) -> tuple[tuple[Position, ...], ...]:
    return tuple(tuple(walk[start : start + gpus]) for start in range(0, len(walk), gpus))


@lru_cache(maxsize=4096)
def chosen_placement(layout: Layout, gpus: int) -> Placement:
    """The placement that fewer stages are expected to be lost with, and then more pipelines left whole.

    Weighed over 1, 2, .. instances going at once, up to as many as there are replicas of a stage.
    """

    def harm(placement: Placement) -> tuple[float, float]:
        count = len(placement.slots)
        losses = range(1, min(count, layout.pipelines) + 1)
        return (
            sum(placement.wiped_stages(count, lost) for lost in losses),
            -sum(placement.intact_pipelines(count, lost) for lost in losses),
        )

    return min(along_pipelines(layout, gpus), along_stages(layout, gpus), key=harm)


@lru_cache(maxsize=65536)
def _kept_ways(kinds: tuple[tuple[Hits, int], ...], most: int, losses: int) -> tuple[int, ...]:
    """Ways to lose 0..`losses` slots with at most `most` replicas lost of any stage.

    The generating polynomial of the losses, kind by kind: beside the power of x (lost instances) a partial
    sum carries what every stage has lost so far. A stage that no kind to come hits is forgotten, so only the
    stages at the edge between done and to come count: none at all where the placement is regular.
    """
    if most < 0:
        return (0,) * (losses + 1)
    # stages that always go together are one
    columns = tuple(zip(*dict.fromkeys(zip(*(hits for hits, _ in kinds), strict=True)), strict=True))
    rest = [tuple(map(any, zip(*columns[index:], strict=True))) for index in range(1, len(columns))] + [()]
    states: dict[Hits, list[int]] = {(0,) * len(columns[0]): [1] + [0] * losses}
    for hits, (_, count), open_after in zip(columns, kinds, rest, strict=True):
        found: dict[Hits, list[int]] = {}
        for lost, ways in states.items():
            for gone in range(min(count, losses) + 1):
                after = tuple(had + gone * hit for had, hit in zip(lost, hits, strict=True))
                if max(after) > most:
                    break
                key = tuple(had if goes_on else 0 for had, goes_on in zip(after, open_after, strict=False))
                total, factor = found.setdefault(key, [0] * (losses + 1)), comb(count, gone)
                for degree in range(losses + 1 - gone):
                    if ways[degree]:
                        total[degree + gone] += ways[degree] * factor
        if len(found) > MOST_STATES:
            return _bound(kinds, most, losses)
        states = found
    (kept,) = states.values()
    return tuple(kept)


def _bound(kinds: tuple[tuple[Hits, int], ...], most: int, losses: int) -> tuple[int, ...]:
    slots, worst = sum(count for _, count in kinds), max(max(hits) for hits, _ in kinds)
    return tuple(comb(slots, gone) if gone * worst <= most else 0 for gone in range(losses + 1))
