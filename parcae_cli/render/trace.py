"""A trace's statistics as one JSON object, or as text for people."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from runtime.planning.trace import Trace

BLOCKS = " ▁▂▃▄▅▆▇█"


def sparkline(counts: tuple[tuple[float, int], ...], end_s: float, width: int = 96) -> str:
    """Availability over time in one line of text."""
    levels = []
    position, count = 0, 0
    for column in range(width):
        time_s = end_s * column / width
        while position < len(counts) and counts[position][0] <= time_s:
            count = counts[position][1]
            position += 1
        levels.append(count)
    top = max(levels, default=0) or 1
    return "".join(BLOCKS[round(level / top * (len(BLOCKS) - 1))] for level in levels)


def as_object(trace: Trace) -> dict[str, Any]:
    """The statistics as JSON."""
    return {
        "name": trace.name,
        **asdict(trace.statistics),
        "losses_per_instance_hour": losses_per_instance_hour(trace),
    }


def losses_per_instance_hour(trace: Trace) -> float:
    """How often an instance that is held is lost, an hour; 0 where none is held."""
    held_h = trace.held_s(0.0, trace.end_s) / 3600
    return trace.statistics.preempted / held_h if held_h else 0.0


def trace_view(trace: Trace) -> RenderableType:
    """The statistics for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    figures, rate = trace.statistics, losses_per_instance_hour(trace)
    table = Table.grid(padding=(0, 2))
    for title, value in (
        ("length", f"{figures.hours:.2f} h"),
        (
            "instances",
            f"{figures.mean_available:.1f} on average, {figures.min_available} to {figures.max_available}",
        ),
        (
            "lost",
            f"{figures.preempted} at {figures.preemption_events} times, {figures.losses_per_hour:.1f}/h",
        ),
        (
            "gained",
            f"{figures.allocated} at {figures.allocation_events} times, {figures.gains_per_hour:.1f}/h",
        ),
        ("loss rate", f"{rate:.3f} an instance hour" + (f", one in {1 / rate:.1f} h" if rate else "")),
        ("lost at once", f"{figures.mean_cluster:.2f} on average"),
    ):
        table.add_row(Text(title, style="dim"), value)
    return Group(
        Text(trace.name, style="bold"), Text(sparkline(trace.counts, trace.end_s), style="cyan"), table
    )
