"""`redundancy` (Bamboo, NSDI'23): a fixed depth, and every node keeps and computes its successor's stage.

When a node goes, the one before it in the pipeline works its stage too, with the copy that it holds; the
first stage, which has nobody before it, falls to the second node. A node that comes takes the place. A
pipeline of which two neighbours are missing has to stop, and its nodes fill the holes of others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runtime.planning.costs import Change
from runtime.planning.migration import Holds, Moves, fetches_of
from runtime.planning.profile import Profile
from runtime.planning.types import Fetch, Layout, MigrationKind, Position
from runtime.planning.whole_instances import NOTHING

Row = list[str | None]  # a pipeline's nodes, stage by stage; None is a hole


@dataclass(frozen=True)
class Arrangement:
    """Who sits where, which stages each node works, and of which it keeps a copy."""

    layout: Layout
    assignment: Mapping[str, Position]
    works: Mapping[str, tuple[int, ...]]
    shadows: Mapping[str, tuple[int, ...]]


def arrange(most: Layout, usable: Sequence[str], previous: Mapping[str, Position]) -> Arrangement | None:
    """The pipelines of depth `most.stages`, at most `most.pipelines` of them; None if not one can work.

    Nodes stay where they were in `previous`. Too few nodes for one pipeline begin one with up to a quarter of
    it missing.
    """
    rows = _rows(most.stages, usable, previous)
    placed = {node for row in rows for node in row}
    spares = [node for node in sorted(usable) if node not in placed]
    while True:
        for row in sorted(rows, key=_holes):
            for stage, node in enumerate(row):
                if node is None and spares:
                    row[stage] = spares.pop(0)
        stuck = [row for row in rows if workers_of(row) is None]
        if not stuck:
            break
        stopped = max(stuck, key=_holes)
        rows = [row for row in rows if row is not stopped]
        spares = sorted([*spares, *(node for node in stopped if node is not None)])
    while len(rows) < most.pipelines and len(spares) >= most.stages:
        rows.append([*spares[: most.stages]])
        spares = spares[most.stages :]
    if not rows and len(spares) >= most.stages - most.stages // 4:
        holes = range(1, 4 * (most.stages - len(spares)), 4)
        rows = [[None if stage in holes else spares.pop(0) for stage in range(most.stages)]]
    return _arrangement(most.stages, rows) if rows else None


def workers_of(row: Sequence[str | None]) -> tuple[int, ...] | None:
    """For every stage of a pipeline, the stage whose node works it; None if some stage has nobody.

    A node works two stages at most.
    """
    found: list[int] = []
    for stage, node in enumerate(row):
        at = stage if node is not None else stage - 1 if stage else 1
        if not 0 <= at < len(row) or row[at] is None:
            return None
        found.append(at)
    return tuple(found) if all(found.count(at) <= 2 for at in found) else None


def _rows(stages: int, usable: Sequence[str], previous: Mapping[str, Position]) -> list[Row]:
    by_pipeline: dict[int, Row] = {}
    for node, position in sorted(previous.items()):
        if node in usable and position.stage < stages:
            by_pipeline.setdefault(position.pipeline, [None] * stages)[position.stage] = node
    return [by_pipeline[pipeline] for pipeline in sorted(by_pipeline)]


def _holes(row: Row) -> int:
    return sum(node is None for node in row)


def _arrangement(stages: int, rows: Sequence[Row]) -> Arrangement:
    assignment: dict[str, Position] = {}
    works: dict[str, tuple[int, ...]] = {}
    shadows: dict[str, tuple[int, ...]] = {}
    for pipeline, row in enumerate(rows):
        at = workers_of(row)
        assert at is not None
        for stage, node in enumerate(row):
            if node is None:
                continue
            assignment[node] = Position(pipeline, stage)
            works[node] = tuple(s for s in range(stages) if at[s] == stage)
            after = (stage + 1) % stages
            shadows[node] = (after,) if row[after] is not None and after != stage else ()
    return Arrangement(Layout(len(rows), stages), assignment, works, shadows)


def redundant_moves(
    profile: Profile,
    target: Arrangement,
    usable: Sequence[str],
    holds: Holds,
    before: Layout | None,
    previous: Mapping[str, Position],
    noticed: bool,
    started: bool,
) -> Moves:
    """How `target` gets its state, copies included; the arguments are those of `migration.plan_moves`."""
    cuts, size = profile.cuts(target.layout.stages), profile.layer_bytes
    needed = {
        node: frozenset(n for stage in (*target.works[node], *target.shadows[node]) for n in cuts[stage])
        for node in target.assignment
    }
    missing = {node: layers - holds.get(node, NOTHING) for node, layers in needed.items()}
    held = frozenset[int]().union(*holds.values())
    wiped = [layer for layer in range(len(size)) if layer not in held]
    if wiped or not started:
        kind = MigrationKind.ROLLBACK if started else MigrationKind.START
        fetches = tuple(Fetch(node, layer, None) for node in sorted(needed) for layer in sorted(needed[node]))
    else:
        fetches = fetches_of(missing, target.assignment, holds, size, frozenset(usable))
        kind = MigrationKind.INTER_STAGE if fetches else MigrationKind.INTRA_STAGE
    moved = sum(size[fetch.layer] for fetch in fetches) if started else 0
    change = Change(
        kind=kind,
        before=before,
        after=target.layout,
        lost_positions=sum(node not in holds for node in previous),
        fresh_nodes=sum(not holds.get(node) for node in target.assignment),
        missing_bytes=max(sum(size[n] for n in layers) for layers in missing.values()) if started else 0,
        wiped_bytes=sum(size[layer] for layer in wiped) if started else 0,
        backup_bytes=moved if kind is MigrationKind.ROLLBACK else 0,
        noticed=noticed,
    )
    return Moves(cuts, target.assignment, fetches, moved, change, target.works, target.shadows)
