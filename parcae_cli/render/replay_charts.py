"""The charts of a replay's page, as SVG whose colours are the page's own (light or dark)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from math import floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.simulate.replay import PolicyResult, ReplayResult
    from runtime.simulate.sweep import Cell

_Scale = Callable[[float], float]  # from a figure to a y of the viewBox
WIDTH, LEFT, RIGHT = 1000.0, 56.0, 872.0  # of the viewBox, and of the part between the axes
POINTS = 480  # of each curve
DASHED = ("ideal", "on-demand", "offline-optimum")
ROOM_FOR_NAME = 34.0  # a layout narrower than this has no name written in it


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about so many."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    size = 10 ** floor(log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    first = -floor(-low / step + 1e-9)
    return [number * step for number in range(first, floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in few characters: 1.5 M, 20 k, 0.25."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def curve(policy: PolicyResult, end_s: float) -> list[float]:
    """Samples committed by the end of each of POINTS equal parts of the trace, beginning with 0."""
    values, total, passed = [0.0], 0.0, 0
    segments = policy.segments
    for number in range(1, POINTS + 1):
        time_s = end_s * number / POINTS
        while passed < len(segments) and segments[passed].end_s <= time_s:
            total += segments[passed].samples
            passed += 1
        part = 0.0
        if passed < len(segments):
            part = segments[passed].samples_per_s * max(0.0, time_s - segments[passed].start_s)
        values.append(total + part)
    return values


def availability(result: ReplayResult, policies: Sequence[PolicyResult]) -> str:
    """What is held, as an area, and over it the layouts of each policy (the first is shown)."""
    height, bottom, top = 300.0, 268.0, 14.0
    counts = [(time_s, count * result.gpus) for time_s, count in result.counts]
    most = max([count for _, count in counts], default=1) * 1.08 or 1.0

    def y(count: float) -> float:
        return bottom - (bottom - top) * count / most

    path = [f"M{LEFT:.1f},{bottom:.1f}"]
    for time_s, count in counts:
        path.append(f"H{_x(time_s, result.end_s):.1f}V{y(count):.1f}")
    path.append(f"H{RIGHT:.1f}V{bottom:.1f}Z")
    unit = "instances" if result.gpus == 1 else "GPUs"
    parts = [_grid(ticks(0, most), y, f"{unit} held"), f"<path d='{''.join(path)}' fill='var(--held)'/>"]
    for number, policy in enumerate(policies):
        hidden = " hidden" if number else ""
        layers = _layouts(policy, result, y, bottom)
        parts.append(f"<g data-shows='{escape(policy.name)}'{hidden}>{layers}</g>")
    return _timed(height, bottom, top, result.end_s, parts, f"{unit} held over time, and the layouts in use")


def _layouts(policy: PolicyResult, result: ReplayResult, y: _Scale, bottom: float) -> str:
    parts = []
    ends = [minute * 60 for minute, _, _ in policy.layouts[1:]] + [result.end_s]
    colour = f"var(--{policy.name})"
    for number, ((minute, pipelines, stages), end_s) in enumerate(zip(policy.layouts, ends, strict=True)):
        if not pipelines:
            continue
        left, right = _x(minute * 60, result.end_s), _x(end_s, result.end_s)
        high = y(pipelines * stages)
        parts.append(
            f"<rect x='{left:.1f}' y='{high:.1f}' width='{max(right - left, 0.4):.1f}' "
            f"height='{bottom - high:.1f}' fill='{colour}' fill-opacity='{0.3 if number % 2 else 0.42}'/>"
            f"<path d='M{left:.1f},{high:.1f}H{max(right, left + 0.4):.1f}' stroke='{colour}' "
            "stroke-width='1.8'/>"
        )
        if right - left >= ROOM_FOR_NAME:
            parts.append(
                f"<text x='{(left + right) / 2:.1f}' y='{high + 16:.1f}' text-anchor='middle' class='name' "
                f"style='fill:{colour}'>{pipelines}×{stages}</text>"
            )
    return "".join(parts)


def samples(result: ReplayResult) -> str:
    """Samples committed over time: a curve for each policy, its name at its end."""
    height, bottom, top = 340.0, 308.0, 14.0
    curves = {policy.name: curve(policy, result.end_s) for policy in result.policies}
    most = max((values[-1] for values in curves.values()), default=1.0) * 1.04 or 1.0

    def y(count: float) -> float:
        return bottom - (bottom - top) * count / most

    parts = [_grid(ticks(0, most), y, "samples")]
    for name, values in sorted(curves.items(), key=lambda item: item[0] == "parcae"):
        points = " ".join(
            f"{LEFT + (RIGHT - LEFT) * number / POINTS:.1f},{y(value):.1f}"
            for number, value in enumerate(values)
        )
        dash = " stroke-dasharray='6 4'" if name in DASHED else ""
        width = 2.8 if name == "parcae" else 1.6
        parts.append(
            f"<polyline points='{points}' fill='none' stroke='var(--{name})' stroke-width='{width}'{dash}/>"
        )
    parts += _names([(name, y(values[-1])) for name, values in curves.items()], top)
    return _timed(height, bottom, top, result.end_s, parts, "samples committed over time, by policy")


def spreads(result: ReplayResult) -> str:
    """How far each seed is off its policy's mean, in points of percent of ideal: a dot for each seed."""
    shown = [policy for policy in result.policies if policy.name not in ("ideal", "on-demand")]
    height = 34.0 + 30 * len(shown)
    off = {
        policy.name: [figure.percent_of_ideal - policy.percent_of_ideal for figure in policy.by_seed]
        for policy in shown
    }
    most = max([abs(value) for values in off.values() for value in values] + [0.05]) * 1.08

    def x(points: float) -> float:
        return 210 + (WIDTH - 240) * (points + most) / (2 * most)

    parts = [
        f"<path class='grid' d='M{x(tick):.1f},8V{height - 26:.1f}'/>"
        f"<text x='{x(tick):.1f}' y='{height - 8:.1f}' text-anchor='middle'>{tick:+.3g}</text>"
        for tick in ticks(-most, most, 8)
    ]
    for number, policy in enumerate(shown):
        at = 22 + 30 * number
        parts.append(
            f"<text x='0' y='{at + 4}' class='name' style='fill:var(--{policy.name})'>{policy.name}</text>"
            f"<text x='185' y='{at + 4}' text-anchor='end'>{policy.percent_of_ideal:.2f} %</text>"
        )
        parts += [
            f"<circle cx='{x(value):.1f}' cy='{at}' r='5.5' fill='var(--{policy.name})' fill-opacity='.5'>"
            f"<title>seed {figure.seed}: {figure.percent_of_ideal:.2f} %</title></circle>"
            for value, figure in zip(off[policy.name], policy.by_seed, strict=True)
        ]
    return _svg(height, parts, "percent of ideal over the seeds, off each policy's mean")


def swept(cells: Sequence[Cell], price: bool) -> str:
    """Over the values of the one key that was swept: samples a second, or USD per million units."""
    (key, _), *_ = cells[0].values
    height, bottom, top, left, right = 300.0, 262.0, 24.0, 62.0, 330.0
    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in sorted(cells, key=lambda cell: cell.values):
        for policy in cell.result.policies:
            figure = policy.usd_per_million_units if price else policy.samples_per_s
            if figure is not None:
                lines.setdefault(policy.name, []).append((cell.values[0][1], figure))
    values = [value for line in lines.values() for _, value in line]
    places = sorted({cell.values[0][1] for cell in cells})
    most = max(values, default=1.0) * 1.06 or 1.0

    def x(value: float) -> float:
        return left + (right - left) * (value - places[0]) / ((places[-1] - places[0]) or 1.0)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / most

    title = f"USD per million {cells[0].result.unit}s" if price else "samples/s"
    parts = [_grid(ticks(0, most), y, title, left, right)]
    parts += [
        f"<text x='{x(place):.1f}' y='{bottom + 17}' text-anchor='middle'>{place:g}</text>"
        for place in places
    ]
    parts.append(f"<text x='{(left + right) / 2}' y='{bottom + 33}' text-anchor='middle'>{key}</text>")
    for name, line in lines.items():
        points = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value in line)
        parts.append(
            f"<polyline points='{points}' fill='none' stroke='var(--{name})' stroke-width='2'/>"
            + "".join(
                f"<circle cx='{x(at):.1f}' cy='{y(value):.1f}' r='3.5' fill='var(--{name})'>"
                f"<title>{name}, {key} {at:g}: {short(value)} {title}</title></circle>"
                for at, value in line
            )
        )
    parts += _names([(name, y(line[-1][1])) for name, line in lines.items()], top, right + 8)
    return _svg(height, parts, f"{title} over {key}", 440.0)


def _x(time_s: float, end_s: float) -> float:
    return LEFT + (RIGHT - LEFT) * time_s / (end_s or 1.0)


def _grid(values: Iterable[float], y: _Scale, title: str, left: float = LEFT, right: float = RIGHT) -> str:
    lines = "".join(
        f"<path class='grid' d='M{left},{y(value):.1f}H{right}'/>"
        f"<text x='{left - 8}' y='{y(value) + 4:.1f}' text-anchor='end'>{short(value)}</text>"
        for value in values
    )
    return f"{lines}<text x='0' y='10'>{escape(title)}</text>"


def _names(ends: Sequence[tuple[str, float]], top: float, left: float = RIGHT + 8) -> list[str]:
    """Names beside the ends of curves, never on top of each other."""
    parts: list[str] = []
    at = float("inf")
    for name, wanted in sorted(ends, key=lambda end: -end[1]):
        at = min(wanted + 4, at - 15)
        parts.append(
            f"<text x='{left:.1f}' y='{max(at, top - 2):.1f}' class='name' style='fill:var(--{name})'>"
            f"{name}</text>"
        )
    return parts


def _timed(height: float, bottom: float, top: float, end_s: float, parts: list[str], title: str) -> str:
    days = end_s > 4 * 86400
    size, unit = (86400.0, "d") if days else (3600.0, "h") if end_s > 5400 else (60.0, "min")
    axis = "".join(
        f"<text x='{_x(tick * size, end_s):.1f}' y='{bottom + 18}' text-anchor='middle'>"
        f"{tick:g} {unit}</text>"
        for tick in ticks(0, end_s / size, 9)
    )
    cross = f"<line class='cross' y1='{top}' y2='{bottom}'/>"
    return _svg(height, [*parts, axis, cross], title, timed=True)


def _svg(height: float, parts: Iterable[str], title: str, width: float = WIDTH, timed: bool = False) -> str:
    return (
        f"<div class='chart'><svg viewBox='0 0 {width:g} {height:g}' role='img'"
        f"{' data-time' if timed else ''} aria-label='{escape(title)}'>{''.join(parts)}</svg></div>"
    )
