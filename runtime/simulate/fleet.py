"""An event-driven fleet around the controller: the same `step` that drives a real job, told by a trace."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from runtime.planning.controller import ControllerConfig, initial_state, step
from runtime.planning.costs import Cost, notice_lead_s
from runtime.planning.state import ControllerState
from runtime.planning.trace import ADD, KILL, Trace
from runtime.planning.types import (
    Event,
    GenerationLive,
    IntervalElapsed,
    MigrationKind,
    NodeJoined,
    NodeLost,
    NodeNoticed,
    Reconfigure,
)
from runtime.simulate.account import EFFECTIVE, LOST, MIGRATING, Account

COUNTED_KINDS = (
    MigrationKind.INTRA_STAGE,
    MigrationKind.INTER_STAGE,
    MigrationKind.PIPELINE,
    MigrationKind.ROLLBACK,
)


@dataclass(frozen=True)
class LoggedDecision:
    """A command and why, for the decision log."""

    time_s: float
    text: str


@dataclass
class FleetRun:
    """How a policy fared: its books, its migrations, its decisions and how long they took to make."""

    account: Account = field(default_factory=Account)
    migrations: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED_KINDS, 0))
    log: list[LoggedDecision] = field(default_factory=list)
    decision_ms: list[float] = field(default_factory=list)


@dataclass
class _Migration:
    generation: int
    cost: Cost
    since_s: float

    @property
    def stops_s(self) -> float:
        return self.since_s + self.cost.prepare_s

    @property
    def redo_from_s(self) -> float:
        return self.stops_s + self.cost.stall_s

    @property
    def live_s(self) -> float:
        return self.redo_from_s + self.cost.redo_s


def replay_fleet(
    config: ControllerConfig,
    trace: Trace,
    notice_s: float = 0.0,
    boot_s: float | Callable[[str], float] = 0.0,
    tick: Callable[[float], None] | None = None,
) -> FleetRun:
    """Run the controller through a trace.

    A removal takes effect at the trace's time and is known `notice_s` before it (never before the instance
    is there); the controller is told when it must act. A kill is never noticed. An instance joins `boot_s`
    (a time, or a function of its name) after it is added, and is paid for from the start. `tick` is told the
    time now and then, for a progress bar.
    """
    run = FleetRun()
    state = initial_state(config)
    told_s = min(notice_s, notice_lead_s(config.profile, config.costs)) if notice_s else 0.0
    agenda = _agenda(trace, config.interval_s, told_s, boot_s)
    joined: set[str] = set()
    doomed: set[str] = set()
    held = 0
    now_s = 0.0
    migration: _Migration | None = None
    serial = 0
    while agenda or migration is not None:
        next_s = agenda[0][0] if agenda else trace.end_s
        if migration is not None and migration.live_s <= next_s and migration.live_s <= trace.end_s:
            next_s = migration.live_s
            _book(run.account, config, state, migration, held, now_s, next_s)
            now_s = next_s
            state = step(config, state, [GenerationLive(migration.generation)], now_s).state
            migration = None
            continue
        if next_s >= trace.end_s:
            break
        _book(run.account, config, state, migration, held, now_s, next_s)
        now_s = next_s
        events: list[Event] = []
        while agenda and agenda[0][0] == now_s:
            _, _, what, name = heapq.heappop(agenda)
            if what == "held":
                held += 1
            elif what == "join" and name not in doomed:
                joined.add(name)
                events.append(NodeJoined(name))
            elif what == "notice" and name in joined:
                events.append(NodeNoticed(name, now_s + told_s))
            elif what == "gone":
                held -= 1
                doomed.add(name)
                if name in joined:
                    joined.discard(name)
                    events.append(NodeLost(name))
            elif what == "interval":
                events.append(IntervalElapsed())
        if not events:
            continue
        started = time.perf_counter()
        decision = step(config, state, events, now_s)
        run.decision_ms.append((time.perf_counter() - started) * 1000)
        state = decision.state
        serial += 1
        if tick is not None and serial % 64 == 0:
            tick(now_s)
        if state.pending is None:
            migration = None
        for command in decision.commands:
            if isinstance(command, Reconfigure):
                plan = command.plan
                migration = _Migration(plan.generation, state.pending_cost, now_s)
                if plan.kind in run.migrations:
                    run.migrations[plan.kind] += 1
            run.log.append(LoggedDecision(now_s, decision.why))
    _book(run.account, config, state, migration, held, now_s, trace.end_s)
    return run


def _agenda(
    trace: Trace, interval_s: float, notice_s: float, boot_s: float | Callable[[str], float]
) -> list[tuple[float, int, str, str]]:
    """What happens when, as a heap of (time_s, order within the time, what, instance)."""
    agenda: list[tuple[float, int, str, str]] = []
    joins_s: dict[str, float] = {}
    for event in trace.lives.events:
        if event.action == ADD:
            booting_s = boot_s(event.name) if callable(boot_s) else boot_s
            joins_s[event.name] = event.time_s + booting_s
            agenda.append((event.time_s, 0, "held", event.name))
            agenda.append((joins_s[event.name], 2, "join", event.name))
        else:
            agenda.append((event.time_s, 1, "gone", event.name))
            if notice_s > 0 and event.action != KILL:
                noticed_s = max(event.time_s - notice_s, joins_s[event.name])
                if noticed_s < event.time_s:
                    agenda.append((noticed_s, 3, "notice", event.name))
    ticks = int(trace.end_s // interval_s)
    agenda += [(index * interval_s, 4, "interval", "") for index in range(1, ticks + 1)]
    heapq.heapify(agenda)
    return agenda


def _book(
    account: Account,
    config: ControllerConfig,
    state: ControllerState,
    migration: _Migration | None,
    held: int,
    start_s: float,
    end_s: float,
) -> None:
    """Book the time from one event to the next, cut where a migration passes from one phase to the next."""
    training = state.layout is not None and not state.broken
    if migration is None:
        if training:
            assert state.layout is not None
            rate = config.profile.samples_per_s(state.layout)
            account.spend(start_s, end_s, held, state.layout, rate, {EFFECTIVE: state.layout.positions})
        else:
            account.spend(start_s, end_s, held)
        return
    assert state.pending is not None
    target = state.pending.layout
    cut = min(max(start_s, migration.stops_s), end_s)
    if training:
        assert state.layout is not None
        rate = config.profile.samples_per_s(state.layout)
        account.spend(start_s, cut, held, state.layout, rate, {EFFECTIVE: state.layout.positions})
    else:
        account.spend(start_s, cut, held, target, 0.0, {MIGRATING: target.positions})
    redo_from = min(max(cut, migration.redo_from_s), end_s)
    account.spend(cut, redo_from, held, target, 0.0, {MIGRATING: target.positions})
    account.spend(redo_from, end_s, held, target, 0.0, {LOST: target.positions})
