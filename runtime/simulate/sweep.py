"""Many replays at once: over seeds, for a mean and its spread, and over values of a replay's own settings."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean, stdev

from runtime.planning.errors import InputError
from runtime.simulate.account import CATEGORIES
from runtime.simulate.replay import PolicyResult, ReplayResult, SeedFigures, replay
from runtime.simulate.setup import ReplaySetup

KEYS = ("lookahead", "interval", "notice", "boot", "fleet")
Values = tuple[tuple[str, float], ...]  # one value for each key that is swept
Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Cell:
    """One combination of a sweep's values, and what came of it."""

    values: Values
    result: ReplayResult


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: its mean, extremes, and standard deviation (0 for one seed)."""

    mean: float
    low: float
    high: float
    sd: float


def spread(figures: Sequence[float]) -> Spread:
    """The spread of one figure or more."""
    return Spread(fmean(figures), min(figures), max(figures), stdev(figures) if len(figures) > 1 else 0.0)


def grid(swept: Mapping[str, Sequence[float]]) -> tuple[Values, ...]:
    """Every combination, the last key turning fastest."""
    return tuple(tuple(zip(swept, values, strict=True)) for values in product(*swept.values()))


def varied(setup: ReplaySetup, values: Values) -> ReplaySetup:
    """The set-up with these values.

    `lookahead` counts intervals, `interval`, `notice` and `boot` are seconds, `fleet` is the most instances
    that are wanted at once.

    Raises:
        InputError: an unknown key, or a value that cannot be.
    """
    for key, value in values:
        whole = key in ("lookahead", "fleet")
        if key not in KEYS:
            raise InputError(f"{key!r} cannot be swept; {', '.join(KEYS)} can")
        if value < 0 or (value == 0 and key not in ("notice", "boot")) or (whole and value != int(value)):
            kind = "a whole number above 0" if whole else "at least 0"
            raise InputError(f"{key}={value:g}: must be {'above 0' if key == 'interval' else kind}")
        if key == "lookahead":
            setup = replace(setup, lookahead=int(value))
        elif key == "interval":
            setup = replace(setup, interval_s=value)
        elif key == "notice":
            setup = replace(setup, notice_s=value)
        elif key == "boot":
            setup = replace(setup, boot_s=value)
        else:
            setup = replace(setup, trace=setup.trace.capped(int(value)))
    return setup


def run_seeds(
    setup: ReplaySetup,
    policies: tuple[str, ...],
    seeds: Sequence[int] = (0,),
    progress: Progress | None = None,
) -> ReplayResult:
    """A replay for every seed, as one result of means (one seed: as it is).

    Raises:
        InputError: a policy is unknown.
    """
    return run_grid(setup, policies, seeds, ((),), progress)[0].result


def run_grid(
    setup: ReplaySetup,
    policies: tuple[str, ...],
    seeds: Sequence[int],
    cells: Sequence[Values],
    progress: Progress | None = None,
) -> tuple[Cell, ...]:
    """A replay for every cell and seed, on all processors. `progress` is told what runs and the share done.

    Raises:
        InputError: a policy, a key or a value is not possible.
    """
    setups = [varied(setup, values).seeded(seed) for values in cells for seed in seeds]
    if len(setups) == 1:
        results = [replay(setups[0], policies, progress)]
    else:
        results = _side_by_side(setups, policies, progress)
    size = len(seeds)
    return tuple(
        Cell(values, averaged(results[number * size : (number + 1) * size]))
        for number, values in enumerate(cells)
    )


def _side_by_side(
    setups: Sequence[ReplaySetup], policies: tuple[str, ...], progress: Progress | None
) -> list[ReplayResult]:
    """The first here, which finds mistakes and keeps its details; the others in processes of their own."""
    found: dict[int, ReplayResult] = {0: replay(setups[0], policies)}

    def tell() -> None:
        if progress is not None:
            progress(f"{len(setups)} replays", len(found) / len(setups))

    tell()
    workers = min(len(setups) - 1, len(os.sched_getaffinity(0)))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _ignore_interrupts)
    try:
        waiting = {
            pool.submit(_briefly, setup, policies): number for number, setup in enumerate(setups) if number
        }
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            tell()
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return [found[number] for number in range(len(setups))]


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends us


def _briefly(setup: ReplaySetup, policies: tuple[str, ...]) -> ReplayResult:
    """A replay's figures without its segments and log: nobody looks at those of hundreds of replays."""
    result = replay(setup, policies)
    return replace(result, policies=tuple(replace(policy, segments=(), log=()) for policy in result.policies))


def averaged(results: Sequence[ReplayResult]) -> ReplayResult:
    """Several seeds' results as one: means, the figures of each seed, and the first seed's course."""
    if len(results) == 1:
        return results[0]
    return replace(
        results[0],
        policies=tuple(
            _mean_policy([result.policies[number] for result in results], results)
            for number in range(len(results[0].policies))
        ),
        seeds=tuple(seed for result in results for seed in result.seeds),
    )


def _mean_policy(runs: Sequence[PolicyResult], results: Sequence[ReplayResult]) -> PolicyResult:
    units = sum(run.units for run in runs)
    return replace(
        runs[0],
        units=fmean(run.units for run in runs),
        samples=fmean(run.samples for run in runs),
        samples_per_s=fmean(run.samples_per_s for run in runs),
        percent_of_ideal=fmean(run.percent_of_ideal for run in runs),
        usd=fmean(run.usd for run in runs),
        usd_by={kind: fmean(run.usd_by[kind] for run in runs) for kind in runs[0].usd_by},
        usd_per_million_units=sum(run.usd for run in runs) / units * 1e6 if units else None,
        gpu_hours={name: fmean(run.gpu_hours[name] for run in runs) for name in CATEGORIES},
        migrations={kind: fmean(run.migrations[kind] for run in runs) for kind in runs[0].migrations},
        by_seed=tuple(
            SeedFigures(result.seeds[0], run.samples, run.percent_of_ideal, run.usd_per_million_units)
            for run, result in zip(runs, results, strict=True)
        ),
    )
