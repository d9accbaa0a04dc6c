"""A measured profile, as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import TYPE_CHECKING, Any

from parcae_cli.render.output import bytes_text

if TYPE_CHECKING:
    from rich.console import RenderableType

PASSES = ("forward_s", "backward_s")


def profile_view(found: Mapping[str, Any]) -> RenderableType:
    """Device, then a table of the layers for each size of micro-batch; equal neighbours share a row."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    device, machine = found["device"], found["machine"]
    parts: list[RenderableType] = [
        Text(f"{found['model']} on {device['name']}", style="bold"),
        Text(
            f"{machine['name']}, {machine['threads']} thread(s), torch {machine['torch']}, {found['dtype']}: "
            f"{bytes_text(device['memory_bytes'])} of memory, {device['flops_per_s'] / 1e9:.1f} GFLOP/s; "
            f"link {bytes_text(device['link_bytes_per_s'])}/s ({device['link']})"
        ),
    ]
    for batch in found["micro_batches"]:
        table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left")
        for name in ("micro-batch of " + str(batch["size"]), "forward ms", "backward ms", "optimiser ms",
                     "state", "activations"):  # fmt: skip
            table.add_column(name, justify="left" if name.startswith("micro") else "right")
        rows = list(zip(found["layers"], batch["layers"], strict=True))
        for _, same in groupby(rows, key=lambda row: (row[0]["params"], row[1]["activation_bytes"])):
            members = list(same)
            first, last = members[0][0]["name"], members[-1][0]["name"]
            table.add_row(
                first if first == last else f"{first}..{last}, each",
                *(f"{_mean(row[1][key] for row in members) * 1e3:.3f}" for key in PASSES),
                f"{_mean(row[0]['optimiser_s'] for row in members) * 1e3:.3f}",
                bytes_text(members[0][0]["state_bytes"]),
                bytes_text(members[0][1]["activation_bytes"]),
            )
        table.add_row(
            "all",
            *(f"{sum(row[1][key] for row in rows) * 1e3:.3f}" for key in PASSES),
            f"{sum(row[0]['optimiser_s'] for row in rows) * 1e3:.3f}",
            bytes_text(sum(row[0]["state_bytes"] for row in rows)),
            bytes_text(sum(row[1]["activation_bytes"] for row in rows)),
            style="bold",
        )
        parts += [Text(""), table]
    return Group(*parts)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)
