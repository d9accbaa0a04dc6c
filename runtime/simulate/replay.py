"""Replaying a trace under several policies, and the figures that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median

from runtime.planning.controller import ControllerConfig
from runtime.planning.errors import InputError
from runtime.planning.forecast import LastValue, Oracle
from runtime.planning.foresight import Foresight
from runtime.planning.profile import Profile, estimated_profile
from runtime.planning.trace import TraceStatistics
from runtime.planning.types import Layout
from runtime.simulate.account import Segment
from runtime.simulate.baselines import RedundancyModel, checkpoint, ideal, on_demand, redundancy
from runtime.simulate.bound import expected_bound
from runtime.simulate.fleet import FleetRun, LoggedDecision, replay_fleet
from runtime.simulate.setup import ReplaySetup

POLICIES = (
    "parcae",
    "parcae-oracle",
    "reactive",
    "checkpoint",
    "redundancy",
    "on-demand",
    "ideal",
    "offline-optimum",
)
CONTROLLED = ("parcae", "parcae-oracle", "reactive", "offline-optimum")
# Bamboo's depth where the template does not say: enough for the model, and half as much again for the
# redundancy.
REDUNDANT_DEPTH = 1.5


@dataclass(frozen=True)
class SeedFigures:
    """How a policy fared with one seed."""

    seed: int
    samples: float
    percent_of_ideal: float
    usd_per_million_units: float | None


@dataclass(frozen=True)
class PolicyResult:
    """How one policy fared. `usd_per_million_units` is None where nothing was committed.

    `usd_by` splits `usd` into spot instances, on-demand instances and the anchor. `by_seed` has the figures
    of each seed where there were several: then the others are means, and the segments, layouts and log are
    those of the first seed.
    """

    name: str
    samples: float
    units: float
    samples_per_s: float
    percent_of_ideal: float
    usd: float
    usd_by: Mapping[str, float]
    usd_per_million_units: float | None
    gpu_hours: Mapping[str, float]
    migrations: Mapping[str, float]
    layouts: tuple[tuple[float, int, int], ...]
    segments: tuple[Segment, ...]
    log: tuple[LoggedDecision, ...]
    by_seed: tuple[SeedFigures, ...] = ()


@dataclass(frozen=True)
class PlannerTimes:
    """How long decisions took, in milliseconds."""

    decisions: int
    median_ms: float
    p95_ms: float


@dataclass(frozen=True)
class ReplayResult:
    """All policies on one trace.

    With the offline optimum comes a `bound`: samples that no plan can expect to exceed (`expected_bound`).
    """

    trace_name: str
    trace: TraceStatistics
    counts: tuple[tuple[float, int], ...]
    end_s: float
    model: str
    unit: str
    costs: str
    forecaster: str
    interval_s: float
    policies: tuple[PolicyResult, ...]
    planner: PlannerTimes
    seeds: tuple[int, ...] = (0,)
    bound: float | None = None
    bound_percent_of_ideal: float | None = None
    gpus: int = 1


def replay(
    setup: ReplaySetup,
    policies: tuple[str, ...],
    progress: Callable[[str, float], None] | None = None,
) -> ReplayResult:
    """Run every policy of `policies` through the trace; `progress` is told a policy and the share done.

    Raises:
        InputError: a policy is unknown.
    """
    for name in policies:
        if name not in POLICIES:
            raise InputError(f"no policy {name!r}; there are {', '.join(POLICIES)}")
    bound = ideal(setup.profile, setup.workers).account.samples
    runner = _Runner(setup, progress)
    # the optimum looks back on the others, so it comes last; the results keep the order asked for
    runs = {name: runner.run(name) for name in sorted(policies, key=lambda name: name == "offline-optimum")}
    results = tuple(_result(setup, name, runs[name], bound) for name in policies)
    limit = expected_bound(setup) if "offline-optimum" in policies else None
    timed = next((runs[name] for name in CONTROLLED if name in runs), FleetRun())
    return ReplayResult(
        trace_name=setup.trace.name,
        trace=setup.trace.statistics,
        counts=setup.trace.counts,
        end_s=setup.trace.end_s,
        model=setup.model.name,
        unit=setup.model.unit,
        costs=setup.costs.name,
        forecaster=setup.forecaster.name,
        interval_s=setup.interval_s,
        policies=results,
        planner=_times(timed.decision_ms),
        seeds=(setup.seed,),
        bound=limit,
        bound_percent_of_ideal=100 * limit / bound if limit is not None and bound else None,
        gpus=setup.gpus,
    )


class _Runner:
    """Runs policies, each once."""

    def __init__(self, setup: ReplaySetup, progress: Callable[[str, float], None] | None) -> None:
        self._setup, self._progress = setup, progress
        self._done: dict[str, FleetRun] = {}

    def run(self, name: str) -> FleetRun:
        """The run of one policy."""
        if name not in self._done:
            self._done[name] = self._run(name)
            if self._progress is not None:
                self._progress(name, 1.0)
        return self._done[name]

    def _run(self, name: str) -> FleetRun:
        setup = self._setup
        if name == "ideal":
            return ideal(setup.profile, setup.workers)
        if name == "on-demand":
            return on_demand(setup.profile, setup.max_nodes * setup.gpus, setup.trace.end_s / 3600)
        if name == "checkpoint":
            return checkpoint(setup.profile, setup.costs, setup.workers, setup.notice_s, setup.boot_of)
        if name == "redundancy":
            return redundancy(*_redundant(setup), setup.costs, setup.workers, setup.boot_of)
        if name == "offline-optimum":
            return self._hindsight()
        return self._controlled(name, self._config(name))

    def _hindsight(self) -> FleetRun:
        """The programme with the whole true trace, or another run of the same controller that was luckier.

        The programme knows how many go and come, not who: it is optimal in expectation over who is hit. Who
        looks back on a trace may also follow any other plan that turned out better on it.
        """
        setup = self._setup
        config = self._config("offline-optimum")
        foresight = Foresight(config.programme, setup.trace.changes, setup.trace.end_s)
        runs = [
            self._controlled("offline-optimum", replace(config, foresight=foresight)),
            *(self.run(other) for other in CONTROLLED if other != "offline-optimum"),
        ]
        return max(runs, key=lambda run: run.account.samples)

    def _config(self, policy: str) -> ControllerConfig:
        setup = self._setup
        forecaster = setup.forecaster
        if policy == "parcae-oracle":
            forecaster = Oracle(setup.trace.interval_counts(setup.interval_s), setup.interval_s)
        elif policy != "parcae":
            forecaster = LastValue()
        return ControllerConfig(
            profile=setup.profile,
            costs=setup.costs,
            policy=policy,
            forecaster=forecaster,
            interval_s=setup.interval_s,
            lookahead=setup.lookahead,
            history=setup.history,
            max_nodes=max(1, setup.max_nodes),
            gpus=setup.gpus,
        )

    def _controlled(self, name: str, config: ControllerConfig) -> FleetRun:
        setup, progress = self._setup, self._progress

        def tick(now_s: float) -> None:
            if progress is not None:
                progress(name, now_s / setup.trace.end_s)

        return replay_fleet(config, setup.workers, setup.notice_s, setup.boot_of, tick)


def _redundant(setup: ReplaySetup) -> tuple[Profile, RedundancyModel]:
    """The profile with the rows that the fixed depth needs, and the redundancy itself."""
    profile = setup.profile
    if setup.model.bamboo_layout is not None:
        pipelines, stages = setup.model.bamboo_layout
        pipelines *= setup.gpus
    else:
        smallest = min((layout.stages for layout in profile.layouts), default=1)
        stages = min(len(setup.model.layers), round(smallest * REDUNDANT_DEPTH + 0.5))
        pipelines = max(1, setup.max_nodes * setup.gpus // stages)
    wanted = [Layout(count, stages) for count in range(1, pipelines + 1)]
    most = setup.max_nodes * setup.gpus
    filled = estimated_profile(setup.model, most, profile, [*profile.layouts, *wanted])
    rows = {**filled.iteration_s, **profile.iteration_s}
    return replace(profile, iteration_s=rows), RedundancyModel(setup.redundancy_overhead, pipelines, stages)


def _result(setup: ReplaySetup, name: str, run: FleetRun, bound: float) -> PolicyResult:
    account, price = run.account, setup.model.price
    hours = account.hours()
    rented = sum(hours.values()) / setup.gpus
    bought = name == "on-demand"
    usd_by = {
        "spot": 0.0 if bought else rented * price.spot_usd_per_hour,
        "on_demand": rented * price.on_demand_usd_per_hour if bought else 0.0,
        "anchor": setup.anchor_usd_per_hour * setup.trace.end_s / 3600 if name in CONTROLLED else 0.0,
    }
    usd = sum(usd_by.values())
    units = account.samples * setup.model.units_per_sample
    return PolicyResult(
        name=name,
        samples=account.samples,
        units=units,
        samples_per_s=account.samples / setup.trace.end_s if setup.trace.end_s else 0.0,
        percent_of_ideal=100 * account.samples / bound if bound else 0.0,
        usd=usd,
        usd_by=usd_by,
        usd_per_million_units=usd / units * 1e6 if units else None,
        gpu_hours=hours,
        migrations={str(kind): count for kind, count in run.migrations.items()},
        layouts=account.layouts(),
        segments=tuple(account.segments),
        log=tuple(run.log),
    )


def _times(decision_ms: list[float]) -> PlannerTimes:
    if not decision_ms:
        return PlannerTimes(0, 0.0, 0.0)
    ordered = sorted(decision_ms)
    return PlannerTimes(len(ordered), median(ordered), ordered[int(0.95 * (len(ordered) - 1))])
