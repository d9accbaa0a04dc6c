"""What others would have done with the same fleet, each tuned as its authors would tune it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from runtime.planning.costs import Change, CostModel
from runtime.planning.profile import Profile
from runtime.planning.saving import young_interval_s
from runtime.planning.trace import ADD, KILL, Trace
from runtime.planning.types import Layout, MigrationKind
from runtime.simulate.account import CHECKPOINTING, EFFECTIVE, LOST, MIGRATING, REDUNDANT
from runtime.simulate.fleet import FleetRun

MOST_HOLES = 0.25  # share of a pipeline's nodes that may be missing while their neighbours fill in


@dataclass(frozen=True)
class Stretch:
    """Time between two changes of the fleet, and what the first of them brought.

    `held` instances are paid for, `ready` of them have booted. `gone` and `came` are names of ready ones.
    """

    start_s: float
    end_s: float
    held: int
    ready: int
    gone: tuple[str, ...]
    came: tuple[str, ...]


def stretches(trace: Trace, boot_of: Callable[[str], float] = lambda name: 0.0) -> list[Stretch]:
    """The trace as stretches in which nothing changes, every instance ready `boot_of` its name later."""
    trace = trace.lives
    ends_s = {event.name: event.time_s for event in trace.events if event.action != ADD}
    held: Counter[float] = Counter({0.0: 0, trace.end_s: 0})
    came: defaultdict[float, list[str]] = defaultdict(list)
    gone: defaultdict[float, list[str]] = defaultdict(list)
    for event in trace.events:
        if event.action == ADD:
            held[event.time_s] += 1
            ready_s = event.time_s + boot_of(event.name)
            if ready_s < min(ends_s.get(event.name, trace.end_s), trace.end_s):
                came[ready_s].append(event.name)
                if event.name in ends_s:
                    gone[ends_s[event.name]].append(event.name)
        else:
            held[event.time_s] -= 1
    found: list[Stretch] = []
    paid, ready = 0, 0
    times = sorted({*held, *came, *gone})
    for time_s, until_s in pairwise(times):
        paid += held[time_s]
        ready += len(came[time_s]) - len(gone[time_s])
        if time_s < trace.end_s:
            found.append(Stretch(time_s, until_s, paid, ready, tuple(gone[time_s]), tuple(came[time_s])))
    return found


def ideal(profile: Profile, trace: Trace) -> FleetRun:
    """The fastest layout at every moment, and every change free and instant: nobody can do better."""
    run = FleetRun()
    for stretch in stretches(trace):
        layout = profile.best(stretch.held)
        if layout is None:
            run.account.spend(stretch.start_s, stretch.end_s, stretch.held)
        else:
            uses = {EFFECTIVE: layout.positions}
            rate = profile.samples_per_s(layout)
            run.account.spend(stretch.start_s, stretch.end_s, stretch.held, layout, rate, uses)
    return run


def on_demand(profile: Profile, nodes: int, hours: float) -> FleetRun:
    """A fleet that is never taken: `nodes` instances for as long as the trace lasts."""
    run = FleetRun()
    layout = profile.best(nodes)
    if layout is None:
        run.account.spend(0.0, hours * 3600, nodes)
    else:
        uses = {EFFECTIVE: layout.positions}
        run.account.spend(0.0, hours * 3600, nodes, layout, profile.samples_per_s(layout), uses)
    return run


def checkpoint(
    profile: Profile,
    costs: CostModel,
    trace: Trace,
    notice_s: float = 0.0,
    boot_of: Callable[[str], float] = lambda name: 0.0,
) -> FleetRun:
    """Restart from a checkpoint at every change (Varuna, EuroSys'22).

    The fastest layout for what is there; everybody restarts and loads. Checkpoints are written every sqrt(2 w
    M) seconds (Young 1974), w the time of a write and M the trace's own mean time between losses, which no
    real user knows. A loss costs the work since the last one, unless its notice leaves time to write. Growing
    is planned: a checkpoint is written first, and it is only done when it pays before the next change, at the
    trace's own mean.
    """
    run = FleetRun()
    account = run.account
    changes = max(1, len(trace.instants) - 1)
    between_changes_s = trace.end_s / changes
    between_losses_s = trace.end_s / max(1, trace.statistics.preemption_events)
    layout: Layout | None = None
    since_s = 0.0  # training time since the last checkpoint
    debt_s = 0.0  # what is left of a restart
    redo_s = 0.0  # and of the work to be done again
    started = False
    killed = {event.name for event in trace.lives.events if event.action == KILL}
    present: dict[str, None] = {}
    members: frozenset[str] = frozenset()
    for stretch in stretches(trace, boot_of):
        for name in stretch.gone:
            del present[name]
        present.update(dict.fromkeys(stretch.came))
        best = profile.best(stretch.ready)
        broken = not members.isdisjoint(stretch.gone)
        worth = best is not None and best != layout
        if layout is not None and best is not None and not broken and worth:
            gain = (profile.samples_per_s(best) - profile.samples_per_s(layout)) * between_changes_s
            price_s = costs.checkpoint_restart_s(profile, best, True) + costs.checkpoint_write_s(
                profile, best
            )
            worth = gain > profile.samples_per_s(best) * price_s
        saved = True
        if broken:
            assert layout is not None
            unseen = not killed.isdisjoint(members.intersection(stretch.gone))
            saved = notice_s >= costs.checkpoint_write_s(profile, layout) and not unseen
            redo_s += 0.0 if saved else since_s
            since_s = 0.0
        if best is None:
            layout, members, debt_s = None, frozenset(), 0.0
            account.spend(stretch.start_s, stretch.end_s, stretch.held)
            continue
        if broken or layout is None or worth:
            write_s = costs.checkpoint_write_s(profile, layout or best)
            debt_s = costs.checkpoint_restart_s(profile, best, bool(stretch.came) or not started)
            debt_s += write_s if layout is not None and saved else 0.0
            layout, since_s, started = best, 0.0, True
            members = frozenset(list(present)[: best.positions])
            run.migrations[MigrationKind.ROLLBACK] += 1
        write_s = costs.checkpoint_write_s(profile, layout)
        every_s = max(profile.iteration_s[layout], young_interval_s(write_s, between_losses_s))
        now_s = stretch.start_s
        uses = layout.positions
        wait_s = min(debt_s, stretch.end_s - now_s)
        account.spend(now_s, now_s + wait_s, stretch.held, layout, 0.0, {CHECKPOINTING: uses})
        now_s, debt_s = now_s + wait_s, debt_s - wait_s
        again_s = min(redo_s, stretch.end_s - now_s)
        account.spend(now_s, now_s + again_s, stretch.held, layout, 0.0, {LOST: uses})
        now_s, redo_s = now_s + again_s, redo_s - again_s
        left_s = stretch.end_s - now_s
        # training and writing alternate; booked as their shares of the time
        share = every_s / (every_s + write_s)
        rate = profile.samples_per_s(layout) * share
        account.spend(
            now_s,
            stretch.end_s,
            stretch.held,
            layout,
            rate,
            {EFFECTIVE: uses * share, CHECKPOINTING: uses * (1 - share)},
        )
        since_s = min(every_s / 2, since_s + left_s) if left_s > every_s else since_s + left_s
    return run


@dataclass(frozen=True)
class RedundancyModel:
    """What redundant computation costs: the share of a step's time that it adds (Bamboo, NSDI'23)."""

    overhead: float
    pipelines: int
    stages: int


def redundancy(
    profile: Profile,
    model: RedundancyModel,
    costs: CostModel,
    trace: Trace,
    boot_of: Callable[[str], float] = lambda name: 0.0,
) -> FleetRun:
    """Fixed depth; every node also computes its successor's stage, so pipelines survive a loss (Bamboo).

    A pipeline that lost a node goes on through the neighbour until a spare takes the place; two neighbours
    lost at once stop it, and its state comes from another pipeline, or from a checkpoint when there is none.
    Pipelines for which there are not nodes enough wait.
    """
    run = FleetRun()
    account = run.account
    pipelines: list[list[str | None]] = []  # names by stage
    spares: list[str] = []
    debt_s = 0.0
    started = False
    for stretch in stretches(trace, boot_of):
        pause_s = 0.0
        gone = set(stretch.gone)
        spares = [name for name in spares if name not in gone] + list(stretch.came)
        hit, stopped = False, False
        for pipeline in pipelines:
            lost = [name in gone for name in pipeline]
            if any(lost):
                hit = True
                stopped |= any(a and b for a, b in pairwise([*lost, lost[0]])) and model.stages > 1
                pipeline[:] = [None if name in gone else name for name in pipeline]
        before = len(pipelines)
        pipelines, spares = _rebuild(pipelines, spares, model)
        now = len(pipelines)
        target = Layout(max(1, now), model.stages)
        if now and (hit or now != before):
            if not started:
                kind = MigrationKind.START
            elif stopped and before <= 1:
                kind = MigrationKind.ROLLBACK
            elif stopped or now > before:
                kind = MigrationKind.INTER_STAGE
            else:
                kind = MigrationKind.INTRA_STAGE
            change = Change(
                kind=kind,
                before=Layout(max(1, before), model.stages) if before else None,
                after=target,
                lost_positions=len(gone) if hit else 0,
                fresh_nodes=0 if kind is MigrationKind.INTRA_STAGE else 1,
                missing_bytes=0
                if kind is MigrationKind.INTRA_STAGE
                else max(profile.stage_bytes(model.stages)),
                wiped_bytes=profile.total_bytes if kind is MigrationKind.ROLLBACK else 0,
                backup_bytes=profile.total_bytes if kind is MigrationKind.ROLLBACK else 0,
            )
            pause_s = costs.cost(profile, change).total_s
            if kind in run.migrations:
                run.migrations[kind] += 1
            started = True
            debt_s = max(debt_s, pause_s)
        if not now:
            debt_s = 0.0
            _thin(run, profile, model, stretch)
            continue
        uses = now * model.stages
        wait_s = min(debt_s, stretch.end_s - stretch.start_s)
        account.spend(stretch.start_s, stretch.start_s + wait_s, stretch.held, target, 0.0, {MIGRATING: uses})
        debt_s -= wait_s
        share = 1 / (1 + model.overhead)
        account.spend(
            stretch.start_s + wait_s,
            stretch.end_s,
            stretch.held,
            target,
            profile.samples_per_s(target) * share,
            {EFFECTIVE: uses * share, REDUNDANT: uses * (1 - share)},
        )
    return run


def _thin(run: FleetRun, profile: Profile, model: RedundancyModel, stretch: Stretch) -> None:
    """Not enough nodes for one pipeline: one with holes goes on at half speed, its neighbours working twice.

    With more than a quarter missing two neighbours are more likely missing than not, and then nothing runs.
    """
    if stretch.ready < (1 - MOST_HOLES) * model.stages:
        run.account.spend(stretch.start_s, stretch.end_s, stretch.held)
        return
    layout, share = Layout(1, model.stages), 1 / (1 + model.overhead)
    working = min(stretch.ready, model.stages)
    run.account.spend(
        stretch.start_s,
        stretch.end_s,
        stretch.held,
        layout,
        profile.samples_per_s(layout) * share / 2,
        {EFFECTIVE: working * share, REDUNDANT: working * (1 - share)},
    )


def _rebuild(
    pipelines: list[list[str | None]], spares: list[str], model: RedundancyModel
) -> tuple[list[list[str | None]], list[str]]:
    """Fill holes from the spares, else give up the pipelines with most holes; add whole ones."""
    pipelines = sorted(pipelines, key=lambda pipeline: sum(name is None for name in pipeline))
    spares = list(spares)
    while pipelines and sum(name is None for pipeline in pipelines for name in pipeline) > len(spares):
        spares += [name for name in pipelines.pop() if name is not None]
    filled: list[list[str | None]] = [
        [name if name is not None else spares.pop(0) for name in pipeline] for pipeline in pipelines
    ]
    while len(filled) < model.pipelines and len(spares) >= model.stages:
        filled.append(list(spares[: model.stages]))
        spares = spares[model.stages :]
    return filled, spares
