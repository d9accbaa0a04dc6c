"""A sweep's results as JSON, or as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from parcae_cli.render.replay import spread_object

if TYPE_CHECKING:
    from rich.console import RenderableType

    from runtime.simulate.sweep import Cell


def sweep_object(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One entry for every combination of values: the values, and how each policy fared."""
    return [
        {
            "values": dict(cell.values),
            "policies": [
                {
                    "name": policy.name,
                    "samples": policy.samples,
                    "percent_of_ideal": policy.percent_of_ideal,
                    "usd": policy.usd,
                    "usd_per_million_units": policy.usd_per_million_units,
                    **spread_object(policy),
                }
                for policy in cell.result.policies
            ],
        }
        for cell in cells
    ]


def sweep_view(cells: Sequence[Cell]) -> RenderableType:
    """One table of samples a second and one of prices, a row for every combination of values."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table

    unit = cells[0].result.unit
    tables = []
    for title in ("samples/s", f"USD per million {unit}s"):
        table = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, title=title, title_justify="left")
        for key, _ in cells[0].values:
            table.add_column(key, justify="right", style="bold")
        for policy in cells[0].result.policies:
            table.add_column(policy.name, justify="right")
        for cell in cells:
            figures = []
            for policy in cell.result.policies:
                figure = policy.samples_per_s if title == "samples/s" else policy.usd_per_million_units
                figures.append("-" if figure is None else f"{figure:.4g}")
            table.add_row(*(f"{value:g}" for _, value in cell.values), *figures)
        tables.append(table)
    return Group(*tables)
