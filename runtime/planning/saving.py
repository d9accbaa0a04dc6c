"""How often a job that restarts from checkpoints should write one."""

from __future__ import annotations

from math import sqrt


def young_interval_s(write_s: float, between_losses_s: float) -> float:
    """The seconds between two checkpoints that lose the least (Young, CACM 1974): sqrt(2 w M).

    `write_s` is what one costs; `between_losses_s` the mean time between losses.
    """
    return sqrt(2 * write_s * between_losses_s)


def mean_between_losses_s(elapsed_s: float, losses: int) -> float:
    """The mean time between losses that a job has seen so far; before the first, all of its time."""
    return elapsed_s / max(1, losses)


def save_is_due(
    steps_since: int, since_s: float, every: int, write_s: float, elapsed_s: float, losses: int
) -> bool:
    """Whether to write a checkpoint now, `steps_since` steps and `since_s` after the last one.

    `every` steps if that is above 0, else by Young's rule, with what the job has seen of writes and losses:
    the first checkpoint, which measures a write, is due at once.
    """
    if every:
        return steps_since >= every
    return steps_since > 0 and since_s >= young_interval_s(write_s, mean_between_losses_s(elapsed_s, losses))
