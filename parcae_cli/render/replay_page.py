"""A replay as one web page in one file: charts, hours, money, and every decision with its reason."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from parcae_cli.catalogue import templates_folder
from parcae_cli.render import replay_charts as charts
from parcae_cli.render.replay import unit_prices
from runtime.simulate.account import CATEGORIES
from runtime.simulate.sweep import spread

if TYPE_CHECKING:
    from runtime.simulate.replay import PolicyResult, ReplayResult
    from runtime.simulate.sweep import Cell


def write_page(result: ReplayResult, path: Path, cells: Sequence[Cell] = ()) -> None:
    """Write the page: it needs no other file and no network."""
    path.write_text(page(result, cells), encoding="utf-8")


def page(result: ReplayResult, cells: Sequence[Cell] = ()) -> str:
    """The page as HTML; `cells` are those of a sweep."""
    figures = result.trace
    title = f"{result.model} on {Path(result.trace_name).name}"
    sub = (
        f"{figures.hours:.1f} h, {figures.mean_available:.1f} instances on average (at most "
        f"{figures.max_available}), {figures.preempted} taken, {figures.allocated} given. "
        f"Costs: {result.costs}; plans every {result.interval_s:g} s"
        + (f"; forecaster: {result.forecaster}" if result.planner.decisions else "")
    )
    drawn = [policy for policy in result.policies if policy.layouts and policy.name != "on-demand"]
    drawn.sort(key=lambda policy: policy.name != "parcae")
    several = len(result.seeds) > 1
    folder = templates_folder() / "report"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    first = f" Seed {result.seeds[0]}." if several else ""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{escape(sub)}.</p>",
        _tiles(result),
        "<section><h2>Availability, and the layouts that used it</h2>"
        f"<p>Grey is held; colour trains, as pipelines × stages.{first}</p>",
        _buttons(drawn),
        charts.availability(result, drawn) + "</section>" if drawn else "</section>",
        f"<section><h2>Samples committed</h2><p>Over time, by policy.{first}</p>",
        f"{charts.samples(result)}</section>",
        f"<section><h2>Policies</h2><div class='wide'>{_table(result)}</div></section>",
    ]
    if several:
        parts.append(
            f"<section><h2>Luck</h2><p>Each of {len(result.seeds)} seeds is a dot: so many points of percent "
            "of ideal above or below the policy's mean. A seed draws anew who is hit by a loss, and how "
            "long an instance boots."
            f"</p>{charts.spreads(result)}</section>"
        )
    parts.append(f"<section><h2>Where the GPU hours went</h2>{_hours(result)}</section>")
    if cells:
        parts.append(f"<section><h2>Sweep</h2>{_sweep(cells)}</section>")
    if any(policy.log for policy in drawn):
        parts.append(f"<section><h2>Decisions</h2>{_logs(drawn)}</section>")
    parts += [
        "<footer>Made by <b>parcae replay</b>. Prices are per instance: spot for all policies but on-demand; "
        "those of Parcae's controller also pay for the anchor.</footer><div id='tip'></div>",
        f"<script type='application/json' id='data'>{_data(result, drawn)}</script>",
        f"<script>{script}</script></body></html>",
    ]
    return "\n".join(parts)


def _tiles(result: ReplayResult) -> str:
    """The figures that matter most, of the first of our own policies that was replayed."""
    by_name = {policy.name: policy for policy in result.policies}
    main = by_name.get("parcae", result.policies[0])
    tiles = [
        (f"{main.percent_of_ideal:.1f} %", f"of ideal, by {main.name}"),
        (f"{charts.short(main.samples)}", f"samples, {charts.short(main.samples_per_s)} a second"),
    ]
    if main.usd_per_million_units is not None:
        tiles.append((f"${main.usd_per_million_units:.3g}", f"per million {result.unit}s"))
        for name, words in (
            ("on-demand", "of the on-demand price"),
            ("checkpoint", "of checkpointing's price"),
        ):
            other = by_name[name].usd_per_million_units if name in by_name and name != main.name else None
            if other:
                tiles.append((f"{100 * main.usd_per_million_units / other:.0f} %", words))
    held = sum(main.gpu_hours.values())
    if held:
        tiles.append((f"{100 * main.gpu_hours['effective'] / held:.0f} %", "of its GPU hours trained"))
    inner = "".join(f"<div><b>{escape(big)}</b><span>{escape(words)}</span></div>" for big, words in tiles)
    return f"<div class='tiles'>{inner}</div>"


def _buttons(policies: Sequence[PolicyResult]) -> str:
    inner = "".join(
        f"<button data-show='{policy.name}' aria-pressed='{'false' if number else 'true'}'>"
        f"{_dot(policy.name)}{policy.name}</button>"
        for number, policy in enumerate(policies)
    )
    return f"<div class='buttons' hidden>{inner}</div>" if len(policies) > 1 else ""


def _dot(name: str) -> str:
    return f"<span class='dot' style='background:var(--{name})'></span>"


def _table(result: ReplayResult) -> str:
    best = max((p.samples for p in result.policies if p.name not in ("ideal", "on-demand")), default=0.0)
    rows = []
    for policy in result.policies:
        mark = " class='best'" if policy.samples == best else ""
        price = policy.usd_per_million_units
        percents = [figure.percent_of_ideal for figure in policy.by_seed]
        money = ", ".join(
            f"{kind.replace('_', '-')} ${usd:,.2f}" for kind, usd in policy.usd_by.items() if usd
        )
        kinds = ", ".join(f"{kind} {count:g}" for kind, count in policy.migrations.items() if count)
        moves = sum(policy.migrations.values())
        rows.append(
            f"<tr{mark}><td>{_dot(policy.name)}{policy.name}<td>{policy.samples:,.0f}"
            f"<td>{policy.samples_per_s:,.1f}<td>{policy.percent_of_ideal:.1f}{_range(percents, '.1f')}"
            f"<td title='{money}'>{policy.usd:,.2f}<td>{'-' if price is None else f'{price:.3g}'}"
            f"{_range(unit_prices(policy), '.3g')}<td title='{kinds}'>{f'{moves:.4g}' if moves else '-'}"
        )
    return (
        "<table><tr><th>policy<th>samples<th>samples/s<th>% of ideal<th>USD"
        f"<th>USD/M {escape(result.unit)}s<th>migrations{''.join(rows)}</table>"
    )


def _range(figures: Sequence[float], form: str) -> str:
    if not figures:
        return ""
    over = spread(figures)
    return f" <small>{over.low:{form}}–{over.high:{form}}</small>"


def _hours(result: ReplayResult) -> str:
    used = [name for name in CATEGORIES if any(policy.gpu_hours[name] for policy in result.policies)]
    key = "".join(f"<span><i style='background:var(--{name})'></i>{name}</span>" for name in used)
    top = max((sum(policy.gpu_hours.values()) for policy in result.policies), default=1.0) or 1.0
    rows = [f"<div class='key'>{key}</div>"]
    for policy in result.policies:
        held = sum(policy.gpu_hours.values())
        bars = "".join(
            f"<i style='background:var(--{name});width:{100 * hours / top:.3f}%' "
            f"title='{name}: {hours:.1f} h, {100 * hours / held:.1f} %'></i>"
            for name in used
            if (hours := policy.gpu_hours[name]) > 0
        )
        rows.append(
            f"<div class='row'><span>{policy.name}</span><div class='bar'>{bars}</div>"
            f"<span>{held:,.1f} h</span></div>"
        )
    return "".join(rows)


def _sweep(cells: Sequence[Cell]) -> str:
    unit = cells[0].result.unit
    drawn = ""
    if len(cells[0].values) == 1 and len(cells) > 1:
        drawn = f"<div class='pair'>{charts.swept(cells, False)}{charts.swept(cells, True)}</div>"
    head = "".join(f"<th>{key}" for key, _ in cells[0].values)
    head += "".join(f"<th>{policy.name}" for policy in cells[0].result.policies)
    rows = []
    for cell in cells:
        row = "".join(f"<td>{value:g}" for _, value in cell.values)
        for policy in cell.result.policies:
            price = policy.usd_per_million_units
            dear = "-" if price is None else f"${price:.3g}"
            row += f"<td>{policy.samples_per_s:,.4g} <small>{dear}</small>"
        rows.append(f"<tr>{row}")
    return (
        f"{drawn}<p>Samples a second, and USD per million {escape(unit)}s.</p>"
        f"<div class='wide'><table><tr>{head}{''.join(rows)}</table></div>"
    )


def _logs(policies: Sequence[PolicyResult]) -> str:
    parts = ["<input id='filter' type='search' placeholder='Filter: node3, lost, 2x12, ..' hidden>"]
    for number, policy in enumerate(policies):
        rows = "".join(
            f"<tr data-at='{entry.time_s:g}'><td>{_clock(entry.time_s)}<td>{escape(entry.text)}"
            for entry in policy.log
        )
        inner = (
            f"<div class='log'><table><tr><th>time<th>{len(policy.log)} decisions of {policy.name}{rows}"
            "</table></div>"
            if policy.log
            else f"<p>{policy.name} follows a fixed rule and keeps no log.</p>"
        )
        parts.append(f"<div data-shows='{policy.name}'{' hidden' if number else ''}>{inner}</div>")
    return _buttons(policies) + "".join(parts)


def _clock(time_s: float) -> str:
    hours, rest = divmod(time_s, 3600)
    return f"{hours:.0f}:{rest // 60:02.0f}:{rest % 60:02.0f}"


def _data(result: ReplayResult, drawn: Sequence[PolicyResult]) -> str:
    layouts = {policy.name: policy.layouts for policy in drawn}
    data = {
        "end": result.end_s,
        "width": charts.WIDTH,
        "left": charts.LEFT,
        "right": charts.RIGHT,
        "first": drawn[0].name if drawn else result.policies[0].name,
        "counts": [(time_s, count * result.gpus) for time_s, count in result.counts],
        "policies": {
            policy.name: {
                "layouts": [
                    (round(minute * 60, 1), pipelines, stages)
                    for minute, pipelines, stages in layouts.get(policy.name, ())
                ],
                "curve": [float(f"{value:.5g}") for value in charts.curve(policy, result.end_s)],
            }
            for policy in result.policies
        },
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
