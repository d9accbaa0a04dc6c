"""What the backup costs: blocks of steps with it and without it, in turns within one job.

    .venv/bin/python benchmarks/backup.py [--model gpt-30m] [--mini-batch 4] [--pairs 6] [--only MODE]

Two nodes of this machine train quietly; the orders to the backup are given in every second block only, so
that a drift of the machine cancels. A block of `state` is one push and the steps until the next is due. One
of `gradients` has the state pushed at its beginning, and those steps are not counted: ordinarily that happens
once a job. The cost is the time of the blocks with over that of those without, less 1, and has a target;
`share` is what the slowest sender measured itself (time held up and processor time, of step time, over all
blocks), `anchor` the most memory that the backup held. A job without a backup must have the same losses.
About five minutes on two idle cores for gpt-30m.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev
from typing import Any

from parcae_cli.catalogue import load_measured_costs, load_template
from runtime.control.backup.orders import BackupOrders
from runtime.control.backup.process import BackupPort
from runtime.control.job.job import JobResult, LaunchRequest
from runtime.control.job.launch import run
from runtime.control.training import coordinator

MODES = ("state", "gradients")
TARGET = 0.05
WARM_UP = 6  # steps
SEEDING = 4  # steps of a block in which a backup that follows gradients gets its state
QUIET = 16  # steps of the job without a backup


class InTurns(BackupOrders):
    """Orders that are given in every second block of `block` steps only, and never in the first ones."""

    block = 10

    @classmethod
    def ordered(cls, step: int) -> bool:
        """Whether the block of this step, the first being 0, has a backup."""
        number = (step - WARM_UP) // cls.block
        return step >= WARM_UP and number % 4 in (1, 2)  # without, with, with, without

    def at(self, steps: int, last: bool, fresh: bool, backup: BackupPort) -> tuple[bool, bool]:
        """See BackupOrders. What is ordered with a commit falls into the step after it: `steps`."""
        if not self.ordered(steps):
            return False, False
        if self._mode == "state":
            push = (steps - WARM_UP) % self.block == 0
            return push, False
        return super().at(steps, last, fresh, backup)


@dataclass(frozen=True)
class Job:
    """A finished job, when each step was committed (seconds) and each step's loss."""

    result: JobResult
    at_s: Sequence[float]
    losses: Sequence[float]

    def block_s(self, number: int, skip: int) -> float:
        """The time of a block, without its first `skip` steps."""
        first = WARM_UP + number * InTurns.block
        return self.at_s[first + InTurns.block - 1] - self.at_s[first + skip - 1]


def train(template: dict[str, Any], mode: str, steps: int) -> Job:
    """Two nodes, nothing happens to them."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        request = LaunchRequest(
            name="bench",
            model=template["name"],
            home=home,
            nodes=2,
            steps=steps,
            seed=1,
            backup=mode,
            template=template,
            cost_table=load_measured_costs(),
        )
        result = run(request)
        if result.state != "done":
            raise SystemExit(f"the job with {mode} ended as {result.state}: {result.why}")
        rows = [json.loads(line) for line in (home / "jobs/bench/metrics.jsonl").open()]
    return Job(result, [row["time_s"] for row in rows], [row["loss"] for row in rows])


def main() -> int:
    """Run both ways, print a line for each."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--model", default="gpt-30m")
    parser.add_argument("--mini-batch", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=6, help="of blocks with and without, an even number")
    parser.add_argument("--block", type=int, default=10, help="steps")
    parser.add_argument("--only", choices=MODES)
    options = parser.parse_args()
    if options.pairs < 2 or options.pairs % 2 or options.block <= SEEDING:
        parser.error(f"--pairs must be even, and --block above {SEEDING}")
    template = load_template(options.model)
    template = {**template, "training": {**template["training"], "mini_batch": options.mini_batch}}
    InTurns.block = options.block
    coordinator.BackupOrders = InTurns  # type: ignore[misc]
    without = train(template, "none", QUIET)
    steps = WARM_UP + 2 * options.pairs * options.block + 1
    ends, missed = set(), 0
    for mode in [options.only] if options.only else MODES:
        job = train(template, mode, steps)
        skip = SEEDING if mode == "gradients" else 0
        costs, sums = [], [0.0, 0.0]
        for pair in range(options.pairs):
            blocks = (2 * pair, 2 * pair + 1)
            second = InTurns.ordered(WARM_UP + blocks[1] * InTurns.block)
            on, off = reversed(blocks) if second else blocks
            on_s, off_s = job.block_s(on, skip), job.block_s(off, skip)
            costs.append(on_s / off_s - 1)
            sums = [sums[0] + on_s, sums[1] + off_s]
        total, seen = sums[0] / sums[1] - 1, job.result.backup
        missed += total > TARGET
        ends.add(job.result.weights_sha256)
        same = job.losses[:QUIET] == without.losses
        missed += not same
        print(
            f"{mode:10} {options.model}, mini-batch {options.mini_batch}, step "
            f"{sums[1] / options.pairs / (options.block - skip) * 1e3:.0f} ms: {total:+.1%} of step time "
            f"(<= {TARGET:.0%} {'ok' if total <= TARGET else 'NOT MET'}), {options.pairs} pairs: median "
            f"{median(costs):+.1%}, {min(costs):+.1%} to {max(costs):+.1%}, standard error "
            f"{stdev(costs) / len(costs) ** 0.5:.1%}; share {seen['share_of_step_time']:.2%}, "
            f"anchor {seen['peak_bytes'] / 1e6:.0f} MB; losses as without: {same}",
            flush=True,
        )
    print(f"weights equal: {len(ends) == 1}")
    return 1 if missed or len(ends) > 1 else 0


if __name__ == "__main__":
    raise SystemExit(main())
