"""`parcae replay`: what a job would have done, and cost, on a trace, under each policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parcae_cli.errors import UsageError

DEFAULT_POLICIES = "parcae,reactive,checkpoint,redundancy,on-demand,ideal"
PLOTS = (".png", ".svg", ".html")


def replay(
    trace: Annotated[Path, typer.Argument(help="An availability trace, in any known format.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="A model, or a template of your own. [default: gpt3-6b, or the profile's]"
        ),
    ] = None,
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="Policies by name, with commas, or `all`.")
    ] = DEFAULT_POLICIES,
    forecaster: Annotated[
        str, typer.Option(help="last-value, arima, hazard, .. or `all`: one after another.")
    ] = "default",
    costs: Annotated[
        str | None, typer.Option(help="artifact (the paper's) or measured (our own runtime's).")
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measured costs by a file of `parcae profile`.")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.001, help="Seconds between plans.")] = 60.0,
    lookahead: Annotated[int, typer.Option(min=1, help="Intervals that a plan looks ahead.")] = 12,
    history: Annotated[int, typer.Option(min=1, help="Intervals that a forecast looks back.")] = 12,
    start_minute: Annotated[float | None, typer.Option(min=0, help="Replay from this minute on.")] = None,
    end_minute: Annotated[float | None, typer.Option(min=0, help="Replay up to this minute.")] = None,
    notice: Annotated[float, typer.Option(min=0, help="Seconds that a removal is known before.")] = 0.0,
    boot: Annotated[float, typer.Option(min=0, help="Seconds from rented to ready.")] = 0.0,
    gpus: Annotated[
        int,
        typer.Option("--gpus-per-instance", min=1, max=64, help="GPUs that every instance of the trace has."),
    ] = 1,
    fleet: Annotated[int | None, typer.Option(min=1, help="Most instances that are wanted at once.")] = None,
    seed: Annotated[
        str, typer.Option(help="Other than 0: draws who goes, and boot times. A range: each of them.")
    ] = "0",
    seeds: Annotated[
        int | None, typer.Option(min=1, help="So many seeds, from --seed on: means with their spread.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="KEY=V1,V2,..: lookahead, interval, notice, boot or fleet. Several: every pair."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw it: FILE.png, .svg or .html.")] = None,
) -> None:
    """Replay TRACE under several policies and compare samples, cost and what the hours went into.

    Try: parcae replay templates/traces/demo-8.csv --model gpt-tiny
    """
    if plot is not None and plot.suffix not in PLOTS:
        raise UsageError(f"--plot {plot}: must end in {', '.join(PLOTS)}")
    if plot is not None and not plot.parent.is_dir():
        raise UsageError(f"--plot {plot}: there is no folder {plot.parent}", "Make it first")

    from parcae_cli.measured_profile import profiled_model
    from parcae_cli.render.output import print_json, text_console
    from parcae_cli.render.replay import as_object, comparison_object, comparison_table, replay_view
    from parcae_cli.render.replay_progress import ReplayProgress
    from parcae_cli.render.replay_sweep import sweep_object, sweep_view
    from parcae_cli.replay_inputs import read_trace, replay_setup
    from parcae_cli.replay_options import seeds_of, sweep_of
    from runtime.simulate.compare import compare_forecasters
    from runtime.simulate.replay import POLICIES
    from runtime.simulate.sweep import grid, run_grid, varied

    policies = POLICIES if policy == "all" else tuple(dict.fromkeys(policy.replace(" ", "").split(",")))
    draws, swept = seeds_of(seed, seeds), sweep_of(sweep or [])
    part = read_trace(trace)
    if (start_minute, end_minute) != (None, None):
        part = part.sliced(start_minute, end_minute)
    if fleet is not None:
        part = part.capped(fleet)
    first = "default" if forecaster == "all" else forecaster
    if model is None:
        model = "gpt3-6b" if profile is None else profiled_model(profile)
    setup = replay_setup(
        part, model, costs, first, interval, lookahead, history, notice, boot, gpus=gpus, measured=profile
    )
    cells = grid(swept) if swept else ()
    for values in cells:
        varied(setup, values)
    with ReplayProgress() as progress:
        if forecaster == "all":
            ranking = compare_forecasters(setup, progress)
        own, *swept_cells = run_grid(setup, policies, draws, ((), *cells), progress)
    result = own.result
    if plot is not None:
        if plot.suffix == ".html":
            from parcae_cli.render.replay_page import write_page

            write_page(result, plot, swept_cells)
        else:
            from parcae_cli.render.replay_plot import draw

            draw(result, plot)
    note = ""
    if not any(outcome.samples for outcome in result.policies if outcome.name != "on-demand"):
        note = f"nothing can train: {setup.profile.why_nothing_fits(result.trace.max_available, gpus)}"
    if as_json:
        answer = as_object(result) | ({"note": note} if note else {})
        if forecaster == "all":
            answer["forecasters"] = comparison_object(ranking)
        if swept:
            answer["sweep"] = sweep_object(swept_cells)
        print_json(answer)
        return
    console = text_console()
    console.print(replay_view(result))
    if note:
        console.print(f"\n{note}", style="yellow")
    if forecaster == "all":
        console.print(comparison_table(ranking))
    if swept:
        console.print(sweep_view(swept_cells))
    if plot is not None:
        console.print(f"\nDrawn: {plot}", soft_wrap=True)
