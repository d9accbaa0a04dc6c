"""A replay's result as one JSON object, or as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from parcae_cli.render.trace import sparkline
from runtime.simulate.sweep import spread

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from runtime.simulate.compare import ForecasterScore
    from runtime.simulate.replay import PolicyResult, ReplayResult


def as_object(result: ReplayResult) -> dict[str, Any]:
    """The contract of `parcae replay --json`."""
    statistics = result.trace
    return {
        "trace": {
            "name": result.trace_name,
            "hours": statistics.hours,
            "max_available": statistics.max_available,
            "mean_available": statistics.mean_available,
            "preempted": statistics.preempted,
            "allocated": statistics.allocated,
        },
        "model": result.model,
        "costs": result.costs,
        "interval_s": result.interval_s,
        "seeds": list(result.seeds),
        **({"gpus_per_instance": result.gpus} if result.gpus > 1 else {}),
        "forecaster": result.forecaster,
        "policies": [
            {
                "name": policy.name,
                "samples": policy.samples,
                "samples_per_s": policy.samples_per_s,
                "percent_of_ideal": policy.percent_of_ideal,
                "usd": policy.usd,
                "usd_by": dict(policy.usd_by),
                "usd_per_million_units": policy.usd_per_million_units,
                "unit": result.unit,
                "gpu_hours": dict(policy.gpu_hours),
                "migrations": dict(policy.migrations),
                "layouts": [list(layout) for layout in policy.layouts],
                **spread_object(policy),
            }
            for policy in result.policies
        ],
        **(
            {"bound": {"samples": result.bound, "percent_of_ideal": result.bound_percent_of_ideal}}
            if result.bound is not None
            else {}
        ),
        "planner": {
            "decisions": result.planner.decisions,
            "median_ms": result.planner.median_ms,
            "p95_ms": result.planner.p95_ms,
        },
    }


def spread_object(policy: PolicyResult) -> dict[str, Any]:
    """Over several seeds: each one's figures, and their spread. One seed has none."""
    if not policy.by_seed:
        return {}
    return {
        "by_seed": [asdict(figures) for figures in policy.by_seed],
        "spread": {
            name: asdict(spread(values)) if values else None
            for name, values in (
                ("samples", [figures.samples for figures in policy.by_seed]),
                ("percent_of_ideal", [figures.percent_of_ideal for figures in policy.by_seed]),
                ("usd_per_million_units", unit_prices(policy)),
            )
        },
    }


def unit_prices(policy: PolicyResult) -> list[float]:
    """USD per million units of every seed that committed anything."""
    return [
        figures.usd_per_million_units
        for figures in policy.by_seed
        if figures.usd_per_million_units is not None
    ]


def replay_view(result: ReplayResult) -> RenderableType:
    """The comparison for people."""
    from rich.console import Group
    from rich.text import Text

    statistics = result.trace
    head = Text.assemble(
        (result.model, "bold"),
        " on ",
        (result.trace_name, "bold"),
        f": {statistics.hours:.1f} h, {statistics.mean_available:.1f} instances "
        + (f"of {result.gpus} GPUs " if result.gpus > 1 else "")
        + "on average "
        f"(at most {statistics.max_available}), {statistics.preempted} taken, {statistics.allocated} given",
    )
    spark = Text(sparkline(result.counts, result.end_s), style="cyan")
    last = Text(
        f"costs: {result.costs}; plans every {result.interval_s:g} s"
        + (
            f", {result.planner.median_ms:.1f} ms each (p95 {result.planner.p95_ms:.1f} ms); "
            f"forecaster: {result.forecaster}"
            if result.planner.decisions
            else ""
        )
        + (
            f"; no plan that does not know who goes can expect more than "
            f"{result.bound_percent_of_ideal:.2f} % of ideal"
            if result.bound_percent_of_ideal is not None
            else ""
        )
        + (f"; means of {len(result.seeds)} seeds (from-to)" if len(result.seeds) > 1 else ""),
        style="dim",
    )
    return Group(head, spark, "", _policies(result), _hours(result), last)


def _policies(result: ReplayResult) -> Table:
    table = _table("policy")
    for title in ("samples", "/s", "% of ideal", "USD", f"USD/M {result.unit}s", "migrations"):
        table.add_column(title, justify="right")
    several = len(result.seeds) > 1
    best = max((p.samples for p in result.policies if p.name not in ("ideal", "on-demand")), default=0.0)
    for policy in result.policies:
        unit_price = policy.usd_per_million_units
        style = "bold green" if policy.samples == best and policy.name.startswith("parcae") else ""
        table.add_row(
            policy.name,
            f"{policy.samples:,.0f}",
            f"{policy.samples_per_s:,.1f}",
            f"{policy.percent_of_ideal:.1f}" + (f" {_from_to(policy)}" if several else ""),
            f"{policy.usd:,.2f}",
            "-" if unit_price is None else f"{unit_price:.3g}",
            _migrations(policy),
            style=style,
        )
    return table


def _migrations(policy: PolicyResult) -> str:
    total = sum(policy.migrations.values())
    return f"{total:.4g}" if total else "-"


def _from_to(policy: PolicyResult) -> str:
    """The least and the most percent of ideal over the seeds."""
    over = spread([figures.percent_of_ideal for figures in policy.by_seed])
    return f"({over.low:.1f}-{over.high:.1f})"


def _hours(result: ReplayResult) -> Table:
    table = _table("GPU hours")
    names = ("effective", "migrating", "checkpointing", "redundant", "lost", "idle")
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("held", justify="right")
    for policy in result.policies:
        hours = [policy.gpu_hours[name] for name in names]
        table.add_row(
            policy.name, *(f"{value:.1f}" if value else "·" for value in hours), f"{sum(hours):.1f}"
        )
    return table


def _table(first: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    table.add_column(first, no_wrap=True)
    return table


def comparison_object(scores: Sequence[ForecasterScore]) -> list[dict[str, Any]]:
    """The ranking of forecasters as JSON."""
    return [
        {
            "name": score.name,
            "samples": score.samples,
            "percent_of_ideal": score.percent_of_ideal,
            "l1_percent": score.l1_percent,
            "drop_recall": score.drop_recall,
        }
        for score in scores
    ]


def comparison_table(scores: Sequence[ForecasterScore]) -> Table:
    """The ranking of forecasters for people."""
    table = _table("forecaster")
    for title in ("samples", "% of ideal", "error %", "drops foreseen"):
        table.add_column(title, justify="right")
    for score in scores:
        table.add_row(
            score.name,
            f"{score.samples:,.0f}",
            f"{score.percent_of_ideal:.2f}",
            f"{score.l1_percent:.2f}",
            f"{score.drop_recall:.0%}",
        )
    return table
