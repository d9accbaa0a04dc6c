"""A replay as a picture, for a README or a paper: PNG or SVG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.simulate.replay import PolicyResult, ReplayResult

COLOURS = {
    "parcae": "#0b6e4f",
    "parcae-oracle": "#5fad56",
    "offline-optimum": "#8f8f8f",
    "reactive": "#2e86de",
    "checkpoint": "#e67e22",
    "redundancy": "#8e44ad",
    "on-demand": "#c0392b",
    "ideal": "#333333",
}
DASHED = ("ideal", "on-demand", "offline-optimum")


def draw(result: ReplayResult, path: Path) -> None:
    """Write the picture: availability with a policy's layouts in it, and samples over time by policy."""
    figure_of(result).savefig(path, dpi=160)


def figure_of(result: ReplayResult) -> Any:
    """The picture as matplotlib's figure."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.fonttype": "none",
    }
    matplotlib.rcParams.update(style)
    figure = Figure(figsize=(9, 5.6), constrained_layout=True)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.2))
    shown = next((policy for policy in result.policies if policy.log), None)
    _availability(above, result, shown)
    _samples(below, result)
    figure.suptitle(
        f"{result.model} on {Path(result.trace_name).name}: {result.trace.preempted} instances taken, "
        f"{result.trace.allocated} given in {result.trace.hours:.1f} h",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    return figure


def _availability(axes: Any, result: ReplayResult, policy: PolicyResult | None) -> None:
    hours = [time_s / 3600 for time_s, _ in result.counts] + [result.end_s / 3600]
    levels = [count * result.gpus for _, count in result.counts]
    levels.append(levels[-1] if levels else 0)
    unit = "instances" if result.gpus == 1 else "GPUs"
    axes.fill_between(hours, levels, step="post", color="#ced6da", linewidth=0, label=f"{unit} held")
    axes.step(hours, levels, where="post", color="#636e72", linewidth=1)
    if policy is not None:
        starts = [minute / 60 for minute, _, _ in policy.layouts] + [result.end_s / 3600]
        colour = COLOURS.get(policy.name, "#0b6e4f")
        used = [pipelines * stages for _, pipelines, stages in policy.layouts]
        used.append(used[-1] if used else 0)
        axes.step(starts, used, where="post", color=colour, linewidth=1.3, label=f"used by {policy.name}")
        least = result.end_s / 3600 / 22
        for (minute, pipelines, stages), until in zip(policy.layouts, starts[1:], strict=True):
            if until - minute / 60 >= least and pipelines:
                middle = (minute / 60 + until) / 2
                axes.annotate(
                    f"{pipelines}×{stages}",
                    (middle, pipelines * stages),
                    xytext=(0, -11),
                    textcoords="offset points",
                    ha="center",
                    fontsize=8,
                    color=colour,
                )
    axes.set_ylim(0, max(levels, default=1) * 1.12)
    axes.set_ylabel(unit)
    axes.legend(loc="upper right", frameon=False, fontsize=8)


def _samples(axes: Any, result: ReplayResult) -> None:
    ends = []
    for policy in result.policies:
        hours, samples = [0.0], [0.0]
        for segment in policy.segments:
            hours.append(segment.end_s / 3600)
            samples.append(samples[-1] + segment.samples)
        colour = COLOURS.get(policy.name, "#0b6e4f")
        line = "--" if policy.name in DASHED else "-"
        width = 2.2 if policy.name == "parcae" else 1.2
        axes.plot(
            hours, samples, line, color=colour, linewidth=width, zorder=3 if policy.name == "parcae" else 2
        )
        ends.append((samples[-1], policy.name, colour))
    top = max((total for total, _, _ in ends), default=1.0) or 1.0
    label_at = -1.0
    for total, name, colour in sorted(ends):
        label_at = max(total, label_at + top * 0.055)  # names never on top of each other
        axes.annotate(
            name,
            (result.end_s / 3600, total),
            xytext=(result.end_s / 3600 * 1.012, label_at),
            fontsize=8,
            color=colour,
            va="center",
            annotation_clip=False,
        )
    axes.set_xlim(0, result.end_s / 3600 * 1.15)
    axes.set_ylim(0, top * 1.12)
    axes.set_ylabel("samples committed")
    axes.set_xlabel("hours")
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"
