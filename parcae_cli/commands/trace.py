"""`parcae trace`: look at availability traces, or make one up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parcae_cli.errors import UsageError

app = typer.Typer(
    help="Look at availability traces, or make one.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command()
def info(
    trace: Annotated[Path, typer.Argument(help="A trace in any known format.")],
    seed: Annotated[int, typer.Option(help="Draws who goes, in traces that only count.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a trace's statistics."""
    from parcae_cli.render.output import print_json, text_console
    from parcae_cli.render.trace import as_object, trace_view
    from parcae_cli.replay_inputs import read_trace

    parsed = read_trace(trace, seed=seed)
    if as_json:
        print_json(as_object(parsed))
    else:
        text_console().print(trace_view(parsed))


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="The CSV file to write; - is stdout.")],
    hours: Annotated[float, typer.Option(min=0.1, help="How long.")] = 12.0,
    max_available: Annotated[int, typer.Option("--max", min=1, help="Most instances at once.")] = 32,
    mean: Annotated[
        float | None, typer.Option(min=0, help="Mean instances; default 3/4 of the most.")
    ] = None,
    losses: Annotated[float, typer.Option(min=0, help="Instances lost an hour.")] = 14.0,
    cluster: Annotated[float, typer.Option(min=1, help="Mean instances lost at once.")] = 1.8,
    lattice: Annotated[float, typer.Option(min=0.001, help="Seconds that times are multiples of.")] = 60.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same trace.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> None:
    """Make up a trace from a few figures."""
    import sys

    from runtime.planning.trace import synthetic_trace

    average = 0.75 * max_available if mean is None else mean
    if not 0 < average <= max_available:
        raise UsageError(f"--mean {average:g}: must be above 0 and at most --max {max_available}")
    if str(out) != "-" and out.exists() and not force:
        raise UsageError(f"{out}: is there already", "Choose another name, or add --force")
    if str(out) != "-" and not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}", "Make it first")
    made = synthetic_trace(out.stem, seed, hours, max_available, average, losses, cluster, lattice)
    if str(out) == "-":
        sys.stdout.write(made.as_csv())
        return
    out.write_text(made.as_csv(), encoding="utf-8")
    statistics = made.statistics
    print(
        f"{out}: {statistics.hours:g} h, {statistics.mean_available:.1f} instances on average, "
        f"{statistics.preempted} lost, {statistics.allocated} gained",
        file=sys.stderr,
    )
