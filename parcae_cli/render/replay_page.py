"""A replay as one web page in one file: pictures, hours, and every decision with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from parcae_cli.render.replay_plot import figure_of

if TYPE_CHECKING:
    from runtime.simulate.replay import PolicyResult, ReplayResult
    from runtime.simulate.sweep import Cell

CATEGORY_COLOURS = {
    "effective": "#0b6e4f",
    "migrating": "#f2a541",
    "checkpointing": "#e67e22",
    "redundant": "#8e44ad",
    "lost": "#c0392b",
    "idle": "#ced6da",
}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1e272e;max-width:980px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.1rem;margin-top:2.2rem}.sub{color:#636e72;margin-top:0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #eceff1}
td:first-child,th:first-child{text-align:left}
tr.best{font-weight:600;color:#0b6e4f}svg{width:100%;height:auto}
.bar{display:flex;height:1.15rem;border-radius:3px;overflow:hidden;background:#f5f6f7}.bar i{display:block}
.row{display:grid;grid-template-columns:9rem 1fr 5rem;gap:.8rem;align-items:center;margin:.3rem 0}
.key{display:flex;gap:1.2rem;flex-wrap:wrap;color:#636e72;font-size:.85rem}
.key i{display:inline-block;width:.8rem;
height:.8rem;border-radius:2px;margin-right:.35rem;vertical-align:-1px}
details summary{cursor:pointer;color:#0b6e4f;margin:.6rem 0}
.log{max-height:28rem;overflow:auto;font-size:.88rem}
.log td{text-align:left;vertical-align:top}.log td:first-child{white-space:nowrap;color:#636e72}
@media(prefers-color-scheme:dark){body{background:#fff}}
"""


def write_page(result: ReplayResult, path: Path, cells: Sequence[Cell] = ()) -> None:
    """Write the page: it needs no other file and no network."""
    path.write_text(page(result), encoding="utf-8")


def page(result: ReplayResult) -> str:
    """The page as HTML."""
    figures = result.trace
    title = f"{result.model} on {Path(result.trace_name).name}"
    sub = (
        f"{figures.hours:.1f} h, {figures.mean_available:.1f} instances on average (at most "
        f"{figures.max_available}), {figures.preempted} taken, {figures.allocated} given; "
        f"costs: {result.costs}, plans every {result.interval_s:g} s, forecaster: {result.forecaster}"
    )
    picture = StringIO()
    figure_of(result).savefig(picture, format="svg")
    svg = picture.getvalue()
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}</h1><p class=sub>{escape(sub)}</p>",
        svg[svg.index("<svg") :],
        "<h2>Policies</h2>",
        _table(result),
        "<h2>Where the GPU hours went</h2>",
        _hours(result),
        "<h2>Decisions</h2>",
        *(_log(policy) for policy in result.policies if policy.log),
        "</html>",
    ]
    return "\n".join(parts)


def _table(result: ReplayResult) -> str:
    best = max((p.samples for p in result.policies if p.name not in ("ideal", "on-demand")), default=0.0)
    rows = []
    for policy in result.policies:
        mark = " class=best" if policy.samples == best else ""
        price = policy.usd_per_million_units
        rows.append(
            f"<tr{mark}><td>{escape(policy.name)}<td>{policy.samples:,.0f}<td>{policy.samples_per_s:,.1f}"
            f"<td>{policy.percent_of_ideal:.1f}<td>{policy.usd:,.2f}"
            f"<td>{'-' if price is None else f'{price:.3g}'}<td>{sum(policy.migrations.values()) or '-'}"
        )
    return (
        "<table><tr><th>policy<th>samples<th>samples/s<th>% of ideal<th>USD"
        f"<th>USD per million {escape(result.unit)}s<th>migrations{''.join(rows)}</table>"
    )


def _hours(result: ReplayResult) -> str:
    key = "".join(
        f"<span><i style='background:{colour}'></i>{name}</span>" for name, colour in CATEGORY_COLOURS.items()
    )
    top = max((sum(policy.gpu_hours.values()) for policy in result.policies), default=1.0) or 1.0
    rows = [f"<div class=key>{key}</div>"]
    for policy in result.policies:
        held = sum(policy.gpu_hours.values())
        bars = "".join(
            f"<i style='background:{colour};width:{100 * policy.gpu_hours[name] / top:.3f}%' "
            f"title='{name} {policy.gpu_hours[name]:.1f} h'></i>"
            for name, colour in CATEGORY_COLOURS.items()
        )
        rows.append(
            f"<div class=row><span>{escape(policy.name)}</span><div class=bar>{bars}</div>"
            f"<span>{held:.1f} h</span></div>"
        )
    return "".join(rows)


def _log(policy: PolicyResult) -> str:
    rows = "".join(f"<tr><td>{entry.time_s / 60:.1f} min<td>{escape(entry.text)}" for entry in policy.log)
    return (
        f"<details><summary>{escape(policy.name)}: {len(policy.log)} decisions</summary>"
        f"<div class=log><table>{rows}</table></div></details>"
    )
