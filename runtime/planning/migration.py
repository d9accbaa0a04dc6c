"""From one assignment to another: who goes where, who sends what to whom, and what kind of change that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.planning.costs import Change
from runtime.planning.layout import Cuts
from runtime.planning.profile import Profile
from runtime.planning.types import Fetch, Layout, MigrationKind, Position
from runtime.planning.whole_instances import NOTHING, assign_instances

Holds = Mapping[str, frozenset[int]]


@dataclass(frozen=True)
class Moves:
    """An assignment with the fetches that make it possible, and the change as the cost model sees it.

    `works` and `shadows` are as in MigrationPlan.
    """

    cuts: Cuts
    assignment: Mapping[str, Position]
    fetches: tuple[Fetch, ...]
    bytes_moved: int
    change: Change
    works: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shadows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def plan_moves(
    profile: Profile,
    layout: Layout,
    usable: Sequence[str],
    holds: Holds,
    before: Layout | None,
    previous: Mapping[str, Position],
    noticed: bool,
    started: bool = True,
    gpus: int = 1,
) -> Moves:
    """The cheapest way to `layout` in bytes moved.

    `usable` nodes may take positions; every node in `holds` may serve as a source, those about to go as well.
    `before` and `previous` are the layout and assignment of the last live generation. When a layer has no
    holder left the whole state comes from the backup, since versions must not mix. With `gpus` above 1 nodes
    are workers, and those of an instance are placed together.

    Raises:
        ValueError: there are fewer usable nodes than positions.
    """
    cuts = profile.cuts(layout.stages)
    if gpus == 1:
        assignment = assign(usable, holds, layout, cuts, profile.layer_bytes, previous)
    else:
        assignment = assign_instances(usable, holds, layout, cuts, profile.layer_bytes, previous, gpus)
    stages = [frozenset(stage) for stage in cuts]
    missing = {
        node: stages[position.stage] - holds.get(node, NOTHING) for node, position in assignment.items()
    }
    held_somewhere: frozenset[int] = frozenset().union(*holds.values()) if holds else NOTHING
    wiped = [layer for layer in range(len(profile.layer_params)) if layer not in held_somewhere]
    size = profile.layer_bytes
    if not started:
        kind = MigrationKind.START
        fetches = tuple(
            Fetch(node, layer, None) for node in sorted(assignment) for layer in cuts[assignment[node].stage]
        )
    elif wiped:
        kind = MigrationKind.ROLLBACK
        fetches = tuple(
            Fetch(node, layer, None) for node in sorted(assignment) for layer in cuts[assignment[node].stage]
        )
    else:
        fetches = fetches_of(missing, assignment, holds, size, frozenset(usable))
        if before is None or before.stages != layout.stages:
            kind = MigrationKind.PIPELINE
        else:
            kind = MigrationKind.INTER_STAGE if fetches else MigrationKind.INTRA_STAGE
    needed = [sum(size[layer] for layer in layers) for layers in missing.values()]
    moved = 0 if kind is MigrationKind.START else sum(size[fetch.layer] for fetch in fetches)
    change = Change(
        kind=kind,
        before=before,
        after=layout,
        lost_positions=sum(node not in holds for node in previous),
        fresh_nodes=sum(not holds.get(node) for node in assignment),
        missing_bytes=0 if kind is MigrationKind.START else max(needed, default=0),
        wiped_bytes=sum(size[layer] for layer in wiped) if started else 0,
        backup_bytes=moved if kind is MigrationKind.ROLLBACK else 0,
        noticed=noticed,
    )
    return Moves(cuts, assignment, fetches, moved, change)


def assign(
    usable: Sequence[str],
    holds: Holds,
    layout: Layout,
    cuts: Cuts,
    layer_bytes: Sequence[int],
    previous: Mapping[str, Position],
) -> dict[str, Position]:
    """Which node takes which position, so that the least bytes move; of equals, nodes stay where they are.

    Raises:
        ValueError: there are fewer usable nodes than positions.
    """
    nodes = sorted(usable)
    if len(nodes) < layout.positions:
        raise ValueError(f"{layout}: {layout.positions} nodes needed, {len(nodes)} here")
    positions = [
        Position(pipeline, stage) for pipeline in range(layout.pipelines) for stage in range(layout.stages)
    ]
    kept = _unmoved(nodes, holds, positions, cuts, previous)
    free_nodes = [node for node in nodes if node not in kept]
    taken = set(kept.values())
    open_positions = [position for position in positions if position not in taken]
    if open_positions:
        stages = [frozenset(stage) for stage in cuts]
        total = [sum(layer_bytes[layer] for layer in stage) for stage in stages]
        by_holding: dict[frozenset[int], list[float]] = {}
        for node in free_nodes:
            held = holds.get(node, NOTHING)
            if held not in by_holding:
                by_holding[held] = [
                    total[index] - sum(layer_bytes[layer] for layer in stage & held)
                    for index, stage in enumerate(stages)
                ]
        columns = np.array([position.stage for position in open_positions])
        price = np.array([by_holding[holds.get(node, NOTHING)] for node in free_nodes], dtype=float)[
            :, columns
        ]
        if price.shape[0] == 1 or not np.ptp(price, axis=0).any():
            chosen = [(index, index) for index in range(len(open_positions))]  # all nodes are alike
        else:
            from scipy.optimize import linear_sum_assignment

            rows, cols = linear_sum_assignment(price)
            chosen = list(zip(rows.tolist(), cols.tolist(), strict=True))
        for row, column in chosen:
            kept[free_nodes[row]] = open_positions[column]
    return {node: kept[node] for node in sorted(kept)}


def _unmoved(
    nodes: Sequence[str],
    holds: Holds,
    positions: Sequence[Position],
    cuts: Cuts,
    previous: Mapping[str, Position],
) -> dict[str, Position]:
    """The nodes whose place is settled: they hold a whole stage of these cuts and nothing else.

    A stage's whole holder costs nothing there and gains nothing elsewhere, so it stays, up to D of them a
    stage; its own position first, then any open pipeline. What is over goes into the assignment with the
    rest.
    """
    exact = {frozenset(stage): index for index, stage in enumerate(cuts)}
    open_by_stage: dict[int, list[Position]] = {index: [] for index in range(len(cuts))}
    wanted = set(positions)
    kept: dict[str, Position] = {}
    movers: list[tuple[str, int]] = []
    for node in nodes:
        stage = exact.get(holds.get(node, NOTHING))
        if stage is None:
            continue
        position = previous.get(node)
        if position in wanted and position is not None and position.stage == stage:
            kept[node] = position
            wanted.discard(position)
        else:
            movers.append((node, stage))
    for position in positions:
        if position in wanted:
            open_by_stage[position.stage].append(position)
    for node, stage in movers:
        if open_by_stage[stage]:
            kept[node] = open_by_stage[stage].pop(0)
    return kept


def fetches_of(
    missing: Mapping[str, frozenset[int]],
    assignment: Mapping[str, Position],
    holds: Holds,
    layer_bytes: Sequence[int],
    staying: frozenset[str],
) -> tuple[Fetch, ...]:
    """A source for every missing layer: the holder that has the least to send so far, staying nodes first."""
    holders: dict[int, list[str]] = {}
    for node in sorted(holds):
        for layer in holds[node]:
            holders.setdefault(layer, []).append(node)
    load = dict.fromkeys(holds, 0)
    fetches: list[Fetch] = []
    for node in sorted(assignment, key=lambda name: (assignment[name], name)):
        for layer in sorted(missing[node]):
            source = min(
                (holder for holder in holders[layer] if holder != node),
                key=lambda holder: (load[holder], holder not in staying, holder),
            )
            load[source] += layer_bytes[layer]
            fetches.append(Fetch(node, layer, source))
    return tuple(fetches)


def sketch_change(
    profile: Profile,
    before: Layout,
    survivors: Sequence[int],
    lost_positions: int,
    after: Layout,
    noticed: bool,
) -> Change:
    """What `plan_moves` would find, from counts alone: `survivors[p]` nodes still hold stage p of `before`.

    Nodes beyond the survivors hold nothing. Quick enough to be asked for every layout at every decision.
    """
    sizes = profile.stage_bytes(before.stages)
    wiped = sum(size for size, alive in zip(sizes, survivors, strict=True) if alive == 0)
    alive_positions = sum(survivors)
    if before.stages == after.stages:
        short = [size for size, alive in zip(sizes, survivors, strict=True) if alive < after.pipelines]
        kind = MigrationKind.INTER_STAGE if short else MigrationKind.INTRA_STAGE
        missing, kept = max(short, default=0), sum(min(alive, after.pipelines) for alive in survivors)
    else:
        kind = MigrationKind.PIPELINE
        # with enough survivors a new stage goes to the node that held the most of it; else one starts empty
        enough = alive_positions >= after.positions
        sizes_after = profile.stage_bytes(after.stages)
        missing = profile.recut_bytes(before.stages, after.stages) if enough else max(sizes_after)
        kept = min(alive_positions, after.positions)
    if wiped:
        kind = MigrationKind.ROLLBACK
    return Change(
        kind=kind,
        before=before,
        after=after,
        lost_positions=lost_positions,
        fresh_nodes=max(0, after.positions - max(kept, min(alive_positions, after.positions))),
        missing_bytes=missing,
        wiped_bytes=wiped,
        backup_bytes=after.pipelines * profile.total_bytes if wiped else 0,
        noticed=noticed,
    )
