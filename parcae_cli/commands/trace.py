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
    import sys

    from runtime.planning.errors import InputError
    from runtime.planning.synthetic import TraceFigures, calibrated_trace

    average = 0.75 * max_available if mean is None else mean
    if not 0 < average <= max_available:
        raise UsageError(f"--mean {average:g}: must be above 0 and at most --max {max_available}")
    if str(out) != "-" and out.exists() and not force:
        raise UsageError(f"{out}: is there already", "Choose another name, or add --force")
    if str(out) != "-" and not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}", "Make it first")
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
    job: Annotated[str, typer.Argument(help="A job that runs or ran on a cloud.")],
    out: Annotated[Path, typer.Argument(help="The CSV file to write; - is stdout.")],
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
) -> None:
    """Write down which instances a job has held, and how they went, as a trace to replay."""
    import json
    import sys

    from parcae_cli.home import parcae_home
    from runtime.control.job.history import held_trace
    from runtime.control.job.journal import Journal, UnknownJobError

    home = parcae_home()
    if not (home / "journal.db").exists():
        raise UnknownJobError(f"no job named {job!r}: {home} has no jobs")
    if str(out) != "-" and out.exists() and not force:
        raise UsageError(f"{out}: is there already", "Choose another name, or add --force")
    journal = Journal(home)
    known = journal.job(job)
    instances = journal.instances(job)
    noticed = {
        event.text.split()[0] for event in journal.events(job, last=1_000_000) if event.kind == "notice"
    }
    folder = journal.job_folder(job)
    journal.close()
    metrics = folder / "metrics.jsonl"
    steps = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    # What was ended after the last step was ended by us.
    until_s = known.created_s + json.loads(steps[-1])["time_s"] if steps else known.created_s
    made = held_trace(job, instances, noticed, until_s)
    if not made.events:
        raise UsageError(f"job {job} held no instance while it trained", "See: parcae status " + job)
    if str(out) == "-":
        sys.stdout.write(made.as_csv())
        return
    out.write_text(made.as_csv(), encoding="utf-8")
    lost = made.statistics.preempted
    print(f"{out}: {made.end_s / 3600:.3g} h, {len(instances)} instances, {lost} lost", file=sys.stderr)
