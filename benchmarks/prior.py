"""Whether what earlier jobs saw earns its place: `python benchmarks/prior.py [TRACE ...]`.

Traces are cut in halves; the second half is replayed with and without the prior learnt from the first,
whole and its first two hours alone. Prints samples with the prior as a share of those without it.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

from parcae_cli.replay_inputs import read_trace, replay_setup
from runtime.planning.errors import InputError
from runtime.planning.hazard import Hazard
from runtime.planning.prior import learnt, stretch_of
from runtime.planning.trace import Trace, synthetic_trace
from runtime.simulate.replay import replay

MODELS = ("gpt3-6b", "gpt2-1.5b")  # the dearer changes are, the more a forecast matters
SEEDS = (0, 100, 200)
# seed, hours, instances, mean availability, instances lost an hour
MADE_UP = ((1, 24.0, 32, 26.0, 3.0), (2, 12.0, 32, 22.0, 10.0), (3, 8.0, 32, 24.0, 20.0))


def gain(case: tuple[Trace, str, float | None]) -> tuple[str, float]:
    """The share, and what it is of."""
    trace, model, hours = case
    middle = trace.end_s / 120
    end = None if hours is None else min(trace.end_s / 60, middle + 60 * hours)
    first, second = trace.sliced(None, middle), trace.sliced(middle, end)
    setup = replay_setup(second, model, None, "default", 60.0, 12, 12, 0.0, 0.0)
    known = replace(setup, forecaster=Hazard(prior=learnt([stretch_of(first.interval_counts(60.0))])))
    without, with_it = (replay(each, ("parcae",)).policies[0].samples for each in (setup, known))
    return f"{trace.name}, {model}, {'all' if hours is None else f'{hours:g} h'}", with_it / without


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="*", metavar="TRACE", help="besides the made-up ones")
    try:
        traces = [read_trace(Path(path)) for path in parser.parse_args().traces]
    except InputError as error:
        parser.error(str(error))
    for seed, length, nodes, mean, losses in MADE_UP:
        for more in SEEDS:
            name = f"{nodes} instances, {losses:g} lost an hour, {seed + more}"
            traces.append(synthetic_trace(name, seed + more, length, nodes, mean, losses))
    cases = [(trace, model, hours) for trace in traces for model in MODELS for hours in (None, 2.0)]
    found = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for label, share in pool.map(gain, cases):
            found.append(share)
            print(f"{label:60s} {share:.4f}", flush=True)
    print(f"mean {fmean(found):.5f}, worst {min(found):.4f}, best {max(found):.4f} of {len(found)}")


if __name__ == "__main__":
    main()
