"""The paper's Table 2 and Fig. 9a beside our replay of its four segments, in the paper's units.

TRACE is the trace that the paper was measured on: 12 hours of up to 32 p3.2xlarge instances, published with
Bamboo (github.com/uclasystem/bamboo). It is not shipped with Parcae.

    make paper TRACE=aws-p3-12h.csv
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

from parcae_cli.errors import report
from parcae_cli.replay_inputs import read_trace, replay_setup
from runtime.planning.errors import InputError
from runtime.planning.trace import Trace
from runtime.simulate.baselines import on_demand
from runtime.simulate.replay import replay

TABLE = Path(__file__).with_name("paper_table2.json")
FLEET = 32  # the on-demand fleet is as large as the spot fleet ever gets, in every segment
OURS = ("on-demand", "checkpoint", "redundancy", "reactive", "parcae")
PAPER = {"on-demand": "on-demand", "checkpoint": "Varuna", "redundancy": "Bamboo", "parcae": "Parcae"}
MINUTES = 660  # that the trace must have for the last segment

Figures = dict[str, tuple[float | None, float]]  # policy -> USD per million units, samples a second


def figures_of(part: Trace, model: str) -> Figures:
    """What each policy reaches on one segment."""
    setup = replay_setup(part, model, "artifact", "default", 60.0, 12, 12, 0.0, 0.0)
    results = replay(setup, tuple(name for name in OURS if name != "on-demand")).policies
    found: Figures = {policy.name: (policy.usd_per_million_units, policy.samples_per_s) for policy in results}
    hours = part.end_s / 3600
    samples = on_demand(setup.profile, FLEET, hours).account.samples
    usd = FLEET * hours * setup.model.price.on_demand_usd_per_hour
    found["on-demand"] = (usd / (samples * setup.model.units_per_sample) * 1e6, samples / part.end_s)
    return found


def main() -> int:
    """Print both tables, and how much dearer and slower the others are: the paper's figures and ours."""
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    if len(sys.argv) != 2:
        print(
            "make paper needs the paper's trace, which is not shipped: make paper TRACE=aws-p3-12h.csv "
            "(from github.com/uclasystem/bamboo)",
            file=sys.stderr,
        )
        return 2
    path = Path(sys.argv[1])
    paper = json.loads(TABLE.read_text(encoding="utf-8"))
    try:
        whole = replace(read_trace(path), name=path.name)
        if whole.end_s < 60 * MINUTES:
            raise InputError(f"{path}: has {whole.end_s / 60:g} minutes; the segments need {MINUTES}")
    except InputError as error:
        return report(error)
    cases = [(model, segment) for model, rows in paper["models"].items() for segment in rows]
    parts = [whole.sliced(*paper["segments"][segment]) for _, segment in cases]
    workers = min(len(cases), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(figures_of, parts, [model for model, _ in cases]))
    theirs = [
        dict(zip(paper["systems"], paper["models"][model][segment], strict=True)) for model, segment in cases
    ]
    _prices(cases, theirs, found)
    _ratios(cases, theirs, found)
    return 0


def _prices(
    cases: list[tuple[str, str]], theirs: list[dict[str, float | None]], found: list[Figures]
) -> None:
    print("Table 2: 1e-6 USD per image (resnet152, vgg19) or token; the paper's | ours")
    named = [f"({PAPER[name]} | ours)" if name in PAPER else "(ours)" for name in OURS]
    print(f"{'':16}" + "".join(f"{name:>18}" for name in OURS))
    print(f"{'':16}" + "".join(f"{name:>18}" for name in named))
    for (model, segment), paper, ours in zip(cases, theirs, found, strict=True):
        cells = [
            f"{_text(paper[name])} | {_text(ours[name][0])}" if name in paper else _text(ours[name][0])
            for name in OURS
        ]
        print(f"{model:11} {segment:4}" + "".join(f"{cell:>18}" for cell in cells))


def _ratios(
    cases: list[tuple[str, str]], theirs: list[dict[str, float | None]], found: list[Figures]
) -> None:
    print("\nFig. 9a: how many times the throughput of each Parcae has; the paper's | ours")
    others = ("checkpoint", "redundancy", "reactive")
    print(f"{'':16}" + "".join(f"{name:>18}" for name in others))
    kept: dict[tuple[str, str], list[float]] = {}
    for (model, segment), paper, ours in zip(cases, theirs, found, strict=True):
        cells = []
        for name in others:
            dear, cheap = paper.get(name), paper["parcae"]
            published = dear / cheap if dear and cheap else None
            rate = ours[name][1]
            own = ours["parcae"][1] / rate if rate else None
            for source, value in (("paper", published), ("ours", own)):
                if value is not None:
                    kept.setdefault((name, source), []).append(value)
            cells.append(f"{_text(published)} | {_text(own)}" if name in paper else _text(own))
        print(f"{model:11} {segment:4}" + "".join(f"{cell:>18}" for cell in cells))
    print("\ngeometric mean and most:")
    for (name, source), values in sorted(kept.items()):
        print(f"  {name:11} {source:6} {geometric_mean(values):5.2f} {max(values):6.2f}")


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
