"""Made-up traces that have the figures asked for: draws are corrected and tried again until one has them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime.planning.errors import InputError
from runtime.planning.trace import Trace, synthetic_trace

DRAWS = 200  # that are tried at most
CLOSE = 0.7  # of the tolerances: near enough to stop
# How far off each figure may be: of its value, and in instances (figures an hour: over the whole trace).
MEAN_OFF, RATE_OFF, CLUSTER_OFF = 0.03, 0.06, 0.08
FEW = 2.0


@dataclass(frozen=True)
class TraceFigures:
    """What a made-up trace should be like. `gains_per_hour` None: as many as losses."""

    hours: float
    max_available: int
    mean_available: float
    losses_per_hour: float
    gains_per_hour: float | None = None
    mean_cluster: float = 1.8
    lattice_s: float = 60.0

    @property
    def gains(self) -> float:
        """Instances gained an hour."""
        return self.losses_per_hour if self.gains_per_hour is None else self.gains_per_hour


def calibrated_trace(name: str, seed: int, figures: TraceFigures) -> Trace:
    """A trace whose mean availability, losses and gains an hour and cluster size are near those asked for.

    Near: within 3 % (mean), 6 % or two instances in all (losses, gains) and 8 % (cluster size); else the
    nearest of two hundred draws, where chance allows no better (very short traces). The same for a seed.

    Raises:
        InputError: the figures cannot go together.
    """
    _check(figures)
    mean, speed, cluster = figures.mean_available, 1.0, figures.mean_cluster
    best: tuple[float, Trace] | None = None
    for number in range(DRAWS):
        made = synthetic_trace(
            name,
            seed + 1_000_003 * number,
            figures.hours,
            figures.max_available,
            min(mean, float(figures.max_available)),
            speed * figures.losses_per_hour,
            max(1.0, cluster),
            figures.lattice_s,
            speed * figures.gains,
        )
        error = _off(made, figures)
        if best is None or error < best[0]:
            best = (error, made)
        if error <= CLOSE:
            break
        seen = made.statistics
        changes, wanted = seen.losses_per_hour + seen.gains_per_hour, figures.losses_per_hour + figures.gains
        mean += 0.3 * (figures.mean_available - seen.mean_available)
        mean = min(max(mean, 0.5 * figures.mean_available), 1.5 * figures.mean_available)
        if changes:
            speed = min(max(speed * (wanted / changes) ** 0.3, 0.5), 3.0)
        if seen.mean_cluster:
            cluster *= (figures.mean_cluster / seen.mean_cluster) ** 0.3
    assert best is not None
    return best[1]


def _off(trace: Trace, figures: TraceFigures) -> float:
    """The worst figure's distance from what was asked for, in tolerances."""
    seen, hours = trace.statistics, figures.hours
    distances = [
        abs(seen.mean_available - figures.mean_available) / (MEAN_OFF * figures.mean_available),
        *(
            abs(got - asked) * hours / max(FEW, RATE_OFF * asked * hours)
            for got, asked in (
                (seen.losses_per_hour, figures.losses_per_hour),
                (seen.gains_per_hour, figures.gains),
            )
        ),
    ]
    if figures.losses_per_hour:
        distances.append(abs(seen.mean_cluster - figures.mean_cluster) / (CLUSTER_OFF * figures.mean_cluster))
    return max(distances)


def _check(figures: TraceFigures) -> None:
    most, mean = figures.max_available, figures.mean_available
    if not all(map(math.isfinite, (figures.hours, mean, figures.losses_per_hour, figures.gains,
                                   figures.mean_cluster, figures.lattice_s))):  # fmt: skip
        raise InputError("all figures must be finite numbers")
    if not 0 < mean <= most:
        raise InputError(f"a mean of {mean:g} instances must be above 0 and at most the most at once, {most}")
    if mean == most and figures.losses_per_hour:
        raise InputError(f"losses are asked for, so the mean of {mean:g} must be below the most, {most}")
    swing = (figures.gains - figures.losses_per_hour) * figures.hours / 2
    low, high = mean - abs(swing), mean + abs(swing)
    if low < 0 or high > most:
        raise InputError(
            f"{figures.losses_per_hour:g} losses and {figures.gains:g} gains an hour over "
            f"{figures.hours:g} h take availability from {mean - swing:g} to {mean + swing:g}; "
            f"it must stay within 0 and {most}"
        )
    if figures.mean_cluster > most:
        raise InputError(f"{figures.mean_cluster:g} instances cannot go at once: there are {most} at most")
    ticks_per_hour = 3600 / figures.lattice_s
    if max(figures.losses_per_hour, figures.gains) / figures.mean_cluster > 0.8 * ticks_per_hour:
        raise InputError(
            f"changes every {figures.lattice_s:g} s at most are too few for so many an hour; "
            "ask for larger clusters or a finer lattice"
        )
