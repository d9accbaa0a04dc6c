"""`parcae trace`: look at availability traces, or make one up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from parcae_cli.errors import UsageError
from parcae_cli.new_file import check_new_file

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
    gains: Annotated[
        float | None, typer.Option(min=0, help="Instances gained an hour; default as many as lost.")
    ] = None,
    cluster: Annotated[float, typer.Option(min=1, help="Mean instances lost at once.")] = 1.8,
    lattice: Annotated[float, typer.Option(min=0.001, help="Seconds that times are multiples of.")] = 60.0,
    seed: Annotated[int, typer.Option(help="The same seed makes the same trace.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> None:
    """Make up a trace that has the figures asked for, near enough (it says which it has).

    Try: parcae trace synth stormy.csv --hours 24 --max 32 --mean 22 --losses 30 --cluster 2.5
    """
    from runtime.planning.errors import InputError
    from runtime.planning.synthetic import TraceFigures, calibrated_trace

    average = 0.75 * max_available if mean is None else mean
    if not 0 < average <= max_available:
        raise UsageError(f"--mean {average:g}: must be above 0 and at most --max {max_available}")
    check_new_file(out, force)
    figures = TraceFigures(hours, max_available, average, losses, gains, cluster, lattice)
    try:
        made = calibrated_trace(out.stem, seed, figures)
    except InputError as error:
        raise UsageError(f"trace synth: {error}") from None
    if str(out) == "-":
        sys.stdout.write(made.as_csv())
        return
    out.write_text(made.as_csv(), encoding="utf-8")
    statistics = made.statistics
    print(
        f"{out}: {statistics.hours:g} h, {statistics.mean_available:.1f} instances on average, "
        f"{statistics.preempted} lost ({statistics.losses_per_hour:.1f}/h, {statistics.mean_cluster:.2f} at "
        f"once), {statistics.allocated} gained ({statistics.gains_per_hour:.1f}/h)",
        file=sys.stderr,
    )


@app.command()
def record(
    job: Annotated[
        str, typer.Argument(metavar="[JOB]", help="A job that runs or ran; left out with --cloud.")
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The CSV file to write; - is stdout.")
    ] = None,
    cloud: Annotated[
        str | None,
        typer.Option(metavar="CLOUD", help="Not one job: what all jobs recorded of this cloud's pools."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option(metavar="H", min=0.1, help="With --cloud: only the last H hours [24].")
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE/ZONE", help="With --cloud: only this pool; may be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> None:
    """Write down which instances a job, or all jobs of a cloud, have held, as a trace to replay.

    A job's trace has its instances by name, to the second. A cloud's has what jobs recorded by the minute and
    pool, never more than they wanted; minutes in which none ran are left out.

    Try: parcae trace record --cloud aws --hours 48 aws.csv
    """
    if (cloud is None) == (out is None):
        raise UsageError(
            "trace record: give JOB and OUT, or --cloud and OUT", "Example: parcae trace record mine mine.csv"
        )
    if cloud is None and (hours is not None or pool):
        raise UsageError("--hours and --pool go with --cloud: a job is recorded whole")
    place = Path(job) if out is None else out
    check_new_file(place, force)
    from parcae_cli.recorded import trace_of_cloud, trace_of_job

    made = trace_of_job(job) if cloud is None else trace_of_cloud(cloud, hours or 24.0, pool or [])
    if str(place) == "-":
        sys.stdout.write(made.as_csv())
        return
    place.write_text(made.as_csv(), encoding="utf-8")
    figures = made.statistics
    print(
        f"{place}: {made.end_s / 3600:.3g} h, {figures.mean_available:.1f} instances on average, "
        f"{figures.preempted} lost",
        file=sys.stderr,
    )
