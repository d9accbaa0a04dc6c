"""What the backup costs: states, gradients and none, side by side in one run, in turns.

    .venv/bin/python benchmarks/backup.py [--model gpt-30m] [--mini-batch 2] [--steps 40] [--rounds 2]

Each job trains on two nodes of this machine, quietly. `step` is the mean of the fastest steps in a row, as
many as lie between two pushes, over all rounds: other work on the machine only adds to it. `ratio` is to the
job without a backup. `share` is what the slowest sender measured itself (time held up and processor time, of
step time), `anchor` the most memory that the backup held.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from parcae_cli.catalogue import load_measured_costs, load_template
from runtime.control.job.job import JobResult, LaunchRequest
from runtime.control.job.launch import run

MODES = ("none", "state", "gradients")
_WARM_UP = 5  # steps


def main() -> None:
    """Run all ways in turns and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="gpt-tiny")
    parser.add_argument("--mini-batch", type=int)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--backup-every", type=int, default=10)
    options = parser.parse_args()
    steps: dict[str, list[float]] = {mode: [] for mode in MODES}
    last: dict[str, JobResult] = {}
    for _ in range(options.rounds):
        for mode in MODES:
            step_s, last[mode] = job(
                mode, options.model, options.mini_batch, options.steps, options.backup_every
            )
            steps[mode].append(step_s)
    equal = len({result.weights_sha256 for result in last.values()}) == 1
    print(f"{options.model}, 2 nodes, {options.steps} steps, {options.rounds} rounds, weights equal: {equal}")
    for mode in MODES:
        backup = last[mode].backup
        print(
            f"{mode:10} step {min(steps[mode]) * 1e3:8.1f} ms  "
            f"ratio {min(steps[mode]) / min(steps['none']):.3f}  share {backup['share_of_step_time']:.2%}  "
            f"anchor {backup['peak_bytes'] / 1e6:.1f} MB"
        )


def job(mode: str, model: str, mini_batch: int | None, steps: int, every: int) -> tuple[float, JobResult]:
    """The mean seconds of the fastest `every` steps in a row, and the result."""
    template = load_template(model)
    if mini_batch is not None:
        template = {**template, "training": {**template["training"], "mini_batch": mini_batch}}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        request = LaunchRequest(
            name="bench",
            model=model,
            home=home,
            nodes=2,
            steps=steps,
            backup=mode,
            backup_every=every,
            template=template,
            cost_table=load_measured_costs(),
        )
        result = run(request)
        if result.state != "done":
            raise SystemExit(f"the job with {mode} ended as {result.state}: {result.why}")
        times = [json.loads(line)["time_s"] for line in (home / "jobs/bench/metrics.jsonl").open()]
    own = times[_WARM_UP:]
    return min(later - earlier for earlier, later in zip(own, own[every:], strict=False)) / every, result


if __name__ == "__main__":
    main()
