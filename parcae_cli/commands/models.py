"""`parcae models`: the models that come with Parcae, or all about one model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from runtime.planning.model import ModelSpec


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
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show how this model (or .toml file) is trained.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the models by name. Your own is a .toml file like these, given by its path."""
    from parcae_cli.catalogue import templates_folder
    from parcae_cli.render.output import print_json, text_console

    if name is not None:
        show_model(name, as_json)
        return
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


def show_model(name: str, as_json: bool) -> None:
    """Print one model's sizes and training settings.

    Raises:
        InputError: there is no such model, or its template is wrong.
    """
    from parcae_cli.catalogue import load_model
    from parcae_cli.render.output import print_json, text_console

    spec = load_model(name)
    if as_json:
        print_json(model_json(spec))
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    for key, value in model_facts(spec):
        table.add_row(key, value)
    console = text_console()
    console.print(f"[bold]{spec.name}[/]")
    console.print(table)


def model_json(spec: ModelSpec) -> dict[str, Any]:
    """What `parcae models NAME --json` prints: the template with every default filled in."""
    return {
        "name": spec.name,
        "params": spec.params,
        "layers": len(spec.layers),
        "trains": spec.gpt is not None,
        "gpt": None if spec.gpt is None else asdict(spec.gpt),
        "training": asdict(spec.training),
        "device": asdict(spec.device),
        "price": asdict(spec.price),
    }


def model_facts(spec: ModelSpec) -> list[tuple[str, str]]:
    """Names and values for people."""
    training, gpt = spec.training, spec.gpt
    facts = [("parameters", f"{spec.params:,} in {len(spec.layers)} layers")]
    if gpt is None:
        return [*facts, ("mini-batch", f"{training.mini_batch:,}"), ("use", "replay")]
    tied = ", the embedding is the output matrix too" if gpt.tied_embeddings else ""
    facts += [
        ("shape", f"d_model {gpt.d_model}, {gpt.heads} heads, vocab {gpt.vocab:,}, seq {gpt.seq:,}{tied}"),
        ("mini-batch", f"{training.mini_batch:,} in micro-batches of {training.micro_batch}"),
        ("learning rate", training.schedule_text),
        ("AdamW", f"betas {training.beta1:g} {training.beta2:g}, epsilon {training.epsilon:g}, "
                  f"weight decay {training.weight_decay:g}"),
        ("clipping", f"norm {training.clip_norm:g}" if training.clip_norm else "none"),
        ("dropout", f"{training.dropout:g}" if training.dropout else "none"),
        ("precision", training.dtype + (", activations recomputed" if training.recompute else "")),
        ("evaluation", f"{training.eval_samples} held-out samples every {training.eval_every} steps"
                       if training.eval_every else "none"),
    ]  # fmt: skip
    return facts


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
