"""`parcae models`: the models that come with Parcae."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import typer


@dataclass(frozen=True)
class ModelRow:
    """One model: sizes, and the prices per hour of the instance that its estimates assume."""

    name: str
    params: int
    layers: int
    trains: bool
    mini_batch: int
    micro_batch: int
    unit: str
    device: str
    spot_usd_per_hour: float
    on_demand_usd_per_hour: float


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models by name. Your own is a .toml file like these, given by its path."""
    from parcae_cli.catalogue import templates_folder
    from parcae_cli.render.output import print_json, text_console

    rows = list_models()
    if as_json:
        print_json({"models": [asdict(row) for row in rows]})
        return
    from rich.table import Table

    table = Table(box=None, header_style="dim", padding=(0, 3, 0, 0), pad_edge=False)
    table.add_column("model", style="bold", no_wrap=True)
    for name in ("parameters", "layers", "mini-batch", "$/h spot"):
        table.add_column(name, justify="right")
    table.add_column("device", no_wrap=True)
    table.add_column("use", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            params_text(row.params),
            str(row.layers),
            f"{row.mini_batch:,}",
            f"{row.spot_usd_per_hour:.3f}",
            row.device,
            "[green]launch[/], replay" if row.trains else "replay",
        )
    console = text_console()
    console.print(table)
    console.print(
        f"\n[dim]Copy one from {templates_folder() / 'models'} to start your own.[/]", soft_wrap=True
    )


def list_models() -> list[ModelRow]:
    """The models that come with Parcae, the smallest first."""
    from parcae_cli.catalogue import load_model, model_names

    rows = []
    for name in model_names():
        spec = load_model(name)
        rows.append(
            ModelRow(
                name=name,
                params=spec.params,
                layers=len(spec.layers),
                trains=spec.gpt is not None,
                mini_batch=spec.training.mini_batch,
                micro_batch=spec.training.micro_batch,
                unit=spec.unit,
                device=spec.device.name,
                spot_usd_per_hour=spec.price.spot_usd_per_hour,
                on_demand_usd_per_hour=spec.price.on_demand_usd_per_hour,
            )
        )
    return sorted(rows, key=lambda row: row.params)


def params_text(count: int) -> str:
    """A number of parameters for people: `6.7 B`."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
