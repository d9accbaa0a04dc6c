"""Which forecaster commits the most, over many traces: `python benchmarks/forecasters.py [TRACE ...]`.

Replays every model of the paper, under every forecaster, on the traces named and on made-up ones of 16 to
80 instances, from calm to stormy; prints each forecaster's samples as shares of the offline optimum's, of the
reactive policy's and of the last value's: the mean over the traces, and the worst with its trace.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.table import Table

from parcae_cli.replay_inputs import read_trace, replay_setup
from runtime.planning.errors import InputError
from runtime.planning.forecasters import DEFAULT, FORECASTERS, forecaster_named
from runtime.planning.trace import Trace, synthetic_trace
from runtime.simulate.replay import replay

MODELS = ("gpt3-6b", "gpt2-1.5b", "bert-large", "resnet152", "vgg19")
# seed, hours, instances, mean availability, instances lost an hour
MADE_UP = (
    (1, 24.0, 32, 26.0, 3.0),
    (2, 12.0, 32, 22.0, 10.0),
    (3, 8.0, 32, 24.0, 20.0),
    (4, 24.0, 16, 13.0, 1.5),
    (5, 48.0, 64, 50.0, 5.0),
    (6, 12.0, 64, 44.0, 25.0),
    (7, 24.0, 80, 60.0, 12.0),
    (8, 168.0, 20, 15.0, 1.0),
)
AGAINST = ("offline-optimum", "reactive", "last-value")


def shares(trace: Trace, model: str) -> dict[str, dict[str, float]]:
    """Each forecaster's samples as shares of those it is held against, on one trace."""
    setup = replay_setup(trace, model, None, "default", 60.0, 12, 12, 0.0, 0.0)
    held = {run.name: run.samples for run in replay(setup, ("reactive", "offline-optimum")).policies}
    samples = {}
    for name in FORECASTERS:
        run = replay(replace(setup, forecaster=forecaster_named(name)), ("parcae",)).policies[0]
        samples[name] = run.samples
    held["last-value"] = samples["last-value"]
    return {name: {key: found / held[key] for key in AGAINST} for name, found in samples.items()}


def _job(case: tuple[Trace, str]) -> tuple[str, dict[str, dict[str, float]]]:
    trace, model = case
    return f"{trace.name}, {model}", shares(trace, model)


def _cases(paths: list[str]) -> Iterator[tuple[Trace, str]]:
    traces = [read_trace(Path(path)) for path in paths]
    for seed, hours, nodes, mean, losses in MADE_UP:
        name = f"{nodes} instances, {losses:g} lost an hour"
        traces.append(synthetic_trace(name, seed, hours, nodes, mean, losses))
    yield from ((trace, model) for trace in traces for model in MODELS)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*", metavar="TRACE", help="besides the made-up ones")
    try:
        cases = list(_cases(parser.parse_args().traces))
    except InputError as error:
        parser.error(str(error))
    found = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for label, scores in pool.map(_job, cases):
            found.append((label, scores))
            ours = scores[DEFAULT]
            print(f"{label:50s}", "  ".join(f"{key} {ours[key]:.4f}" for key in AGAINST), flush=True)
    table = Table("forecaster", *(f"{what} {key}" for key in AGAINST for what in ("mean of", "worst of")))
    for name in FORECASTERS:
        cells = []
        for key in AGAINST:
            label, worst = min(
                ((label, scores[name][key]) for label, scores in found), key=lambda entry: entry[1]
            )
            cells += [f"{fmean(scores[name][key] for _, scores in found):.4f}", f"{worst:.4f} ({label})"]
        table.add_row(name, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
