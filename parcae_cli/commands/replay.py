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
        str, typer.Option("--model", "-m", help="A model, or a template of your own.")
    ] = "gpt3-6b",
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="Policies by name, with commas, or `all`.")
    ] = DEFAULT_POLICIES,
    forecaster: Annotated[
        str, typer.Option(help="last-value, arima, hazard, .. or `all`: one after another.")
    ] = "default",
    costs: Annotated[
        str | None, typer.Option(help="artifact (the paper's) or measured (our own runtime's).")
    ] = None,
    interval: Annotated[float, typer.Option(min=0.001, help="Seconds between plans.")] = 60.0,
    lookahead: Annotated[int, typer.Option(min=1, help="Intervals that a plan looks ahead.")] = 12,
    history: Annotated[int, typer.Option(min=1, help="Intervals that a forecast looks back.")] = 12,
    start_minute: Annotated[float | None, typer.Option(min=0, help="Replay from this minute on.")] = None,
    end_minute: Annotated[float | None, typer.Option(min=0, help="Replay up to this minute.")] = None,
    notice: Annotated[float, typer.Option(min=0, help="Seconds that a removal is known before.")] = 0.0,
    boot: Annotated[float, typer.Option(min=0, help="Seconds from rented to ready.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Draws who goes, in traces that only count.")] = 0,
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

    from parcae_cli.render.output import print_json, text_console
    from parcae_cli.render.replay import as_object, comparison_object, comparison_table, replay_view
    from parcae_cli.replay_inputs import read_trace, replay_setup
    from runtime.simulate.compare import compare_forecasters
    from runtime.simulate.replay import POLICIES
    from runtime.simulate.replay import replay as run

    policies = POLICIES if policy == "all" else tuple(dict.fromkeys(policy.replace(" ", "").split(",")))
    whole = read_trace(trace, seed=seed)
    part = whole.sliced(start_minute, end_minute) if (start_minute, end_minute) != (None, None) else whole
    first = "default" if forecaster == "all" else forecaster
    setup = replay_setup(part, model, costs, first, interval, lookahead, history, notice, boot)
    with _Progress(shown=not as_json) as progress:
        if forecaster == "all":
            ranking = compare_forecasters(setup, progress)
        result = run(setup, policies, progress)
    if plot is not None:
        if plot.suffix == ".html":
            from parcae_cli.render.replay_page import write_page

            write_page(result, plot)
        else:
            from parcae_cli.render.replay_plot import draw

            draw(result, plot)
    note = ""
    if not any(outcome.samples for outcome in result.policies if outcome.name != "on-demand"):
        note = f"nothing can train: {setup.profile.why_nothing_fits(result.trace.max_available)}"
    if as_json:
        answer = as_object(result) | ({"note": note} if note else {})
        if forecaster == "all":
            answer["forecasters"] = comparison_object(ranking)
        print_json(answer)
        return
    console = text_console()
    console.print(replay_view(result))
    if note:
        console.print(f"\n{note}", style="yellow")
    if forecaster == "all":
        console.print(comparison_table(ranking))
    if plot is not None:
        console.print(f"\nDrawn: {plot}", soft_wrap=True)


class _Progress:
    """A bar on stderr that appears only when a replay takes over a second, and only on a terminal."""

    AFTER_S = 1.0

    def __init__(self, shown: bool) -> None:
        import sys
        import time

        self._clock = time.monotonic
        self._since_s = self._clock()
        self._shown = shown and sys.stderr.isatty()
        self._bar: object | None = None
        self._tasks: dict[str, object] = {}

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()  # type: ignore[attr-defined]

    def __call__(self, policy: str, share: float) -> None:
        if not self._shown or self._clock() - self._since_s < self.AFTER_S:
            return
        if self._bar is None:
            from rich.progress import BarColumn, Progress, TextColumn

            from parcae_cli.render.output import text_console

            self._bar = Progress(
                TextColumn("{task.description:>16}"),
                BarColumn(),
                console=text_console(stderr=True),
                transient=True,
            )
            self._bar.start()
        if policy not in self._tasks:
            self._tasks[policy] = self._bar.add_task(policy, total=1.0)  # type: ignore[attr-defined]
        self._bar.update(self._tasks[policy], completed=share)  # type: ignore[attr-defined]
