"""The paper's Table 2 and ours, side by side: USD per million images or tokens, on its four segments.

TRACE is the trace that the paper was measured on: 12 hours of up to 32 p3.2xlarge instances, published with
Bamboo (github.com/uclasystem/bamboo). It is not shipped with Parcae.

    make paper TRACE=aws-p3-12h.csv
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

from parcae_cli.replay_inputs import read_trace, replay_setup
from runtime.planning.trace import Trace
from runtime.simulate.baselines import on_demand
from runtime.simulate.replay import replay

TABLE = Path(__file__).with_name("paper_table2.json")
FLEET = 32  # the on-demand fleet is as large as the spot fleet ever gets, in every segment
POLICIES = ("checkpoint", "redundancy", "reactive", "parcae")


def prices(part: Trace, model: str) -> dict[str, float | None]:
    """USD per million units of each policy on one segment."""
    setup = replay_setup(part, model, "artifact", "default", 60.0, 12, 12, 0.0, 0.0)
    found = {policy.name: policy.usd_per_million_units for policy in replay(setup, POLICIES).policies}
    hours = part.end_s / 3600
    units = on_demand(setup.profile, FLEET, hours).account.samples * setup.model.units_per_sample
    found["on-demand"] = FLEET * hours * setup.model.price.on_demand_usd_per_hour / units * 1e6
    return found


def main() -> None:
    """Print the table, and how much dearer the others are than Parcae: the paper's figure and ours."""
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/paper.py TRACE   (or: make paper TRACE=FILE)\n" + (__doc__ or ""))
    path = Path(sys.argv[1])
    paper = json.loads(TABLE.read_text(encoding="utf-8"))
    whole = replace(read_trace(path), name=path.name)
    ratios: dict[tuple[str, str], list[float]] = {}
    head = "".join(f"{name:>22}" for name in (*paper["systems"], "reactive"))
    print(f"USD per million units: paper / ours\n{'':16}{head}")
    for model, rows in paper["models"].items():
        for segment, figures in rows.items():
            ours = prices(whole.sliced(*paper["segments"][segment]), model)
            theirs = dict(zip(paper["systems"], figures, strict=True))
            cells = [f"{_text(theirs[name])} / {_text(ours[name])}" for name in paper["systems"]]
            cells.append(f"{_text(ours['reactive'])}")
            print(f"{model:11} {segment:4}" + "".join(f"{cell:>22}" for cell in cells))
            for name in ("checkpoint", "redundancy"):
                for source, table in (("paper", theirs), ("ours", ours)):
                    dear, cheap = table[name], table["parcae"]
                    if dear and cheap:
                        ratios.setdefault((name, source), []).append(dear / cheap)
    print("\nhow many times Parcae's price, geometric mean and most:")
    for (name, source), values in sorted(ratios.items()):
        print(f"  {name:11} {source:6} {geometric_mean(values):5.2f} {max(values):6.2f}")


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
