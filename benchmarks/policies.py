"""What the policies make of the same fleet, in one run: the same model, trace and seed on the local cloud.

Each policy runs whole jobs, one after another, in turns. Time lost is what the result says: every pause, and
the steps that had to be done again. An event is an instance that was lost or came. Steps are slower where
nodes are fewer, which is not counted as lost. Everything shares this machine's cores. A restarted worker is
forked from a process that has torch loaded and the state is small, so restarts from checkpoints do better
here than where others run them.

Run: python benchmarks/policies.py [--rounds N] [--steps N] [--policy A,B] [--trace FILE --speed X]
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from parcae_cli.catalogue import load_measured_costs, load_template
from parcae_cli.commands.launch import POLICIES
from runtime.control.job.job import JobResult, LaunchRequest
from runtime.control.job.launch import run

NODES = 8
# In seconds of the trace: kills without a warning, notices of two minutes, and nodes that come.
CHANGES = (
    "60,kill,i1\n120,add,j1\n180,remove,i2\n240,add,j2\n300,kill,i3\n360,kill,i4\n420,add,j3\n480,add,j4\n"
    "540,remove,i5\n600,add,j5\n660,kill,i6\n720,add,j6\n780,remove,j1\n840,add,j7\n900,kill,j2\n960,add,j8\n"
)


@dataclass(frozen=True)
class Outcome:
    """A finished job: its result, and the node-hours that it held on the wall's clock."""

    result: JobResult
    node_hours: float

    @property
    def samples_per_node_hour(self) -> float:
        """Samples in the weights for every hour of a node."""
        return self.result.samples / self.node_hours

    @property
    def events(self) -> int:
        """Instances that were lost or came after the start."""
        return sum(len(m.nodes_lost) + len(m.nodes_joined) for m in self.result.migrations)

    @property
    def lost_per_event_s(self) -> float:
        """Pauses and redone steps, for each event."""
        return self.result.time_lost_s / max(1, self.events)


def train(home: Path, name: str, policy: str, trace: Path, speed: float, steps: int) -> Outcome:
    """Run one job to its end."""
    template = load_template("gpt-tiny")
    request = LaunchRequest(
        name=name, model="gpt-tiny", home=home, nodes=NODES, trace=trace, speed=speed, steps=steps, seed=1,
        policy=policy, template=template, cost_table=load_measured_costs(), checkpoint_every=0,
    )  # fmt: skip
    result = run(request)
    # the local cloud's instances all have one price, so the bill counts their hours
    hours = result.usd / template["price"]["spot_usd_per_hour"] / speed
    return Outcome(result, hours)


def main() -> None:
    """Run the policies in turns and print their figures side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--policy", default=",".join(POLICIES))
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--speed", type=float, default=30.0)
    args = parser.parse_args()
    policies = args.policy.split(",")
    found: dict[str, list[Outcome]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        home, trace = Path(folder), args.trace
        if trace is None:
            trace = home / "trace.csv"
            start = "".join(f"0,add,i{k}\n" for k in range(NODES))
            trace.write_text(f"time_s,event,instance\n{start}{CHANGES}")
        for turn in range(args.rounds):
            for policy in policies:
                outcome = train(home, f"{policy}-{turn}", policy, trace, args.speed, args.steps)
                found[policy].append(outcome)
                r = outcome.result
                print(f"{policy:10s} round {turn + 1}: {r.state}, {r.wall_s:.1f} s, {outcome.events} events, "
                      f"{r.steps_redone} steps redone, {r.time_lost_s:.2f} s lost, "
                      f"weights {str(r.weights_sha256)[:12]}", flush=True)  # fmt: skip
    compare(found)


def compare(found: dict[str, list[Outcome]]) -> None:
    """The medians over the rounds, and each policy's ratio to the first."""
    digests = {outcome.result.weights_sha256 for outcomes in found.values() for outcome in outcomes}
    print(f"\ngpt-tiny, {NODES} nodes, {'equal weights' if len(digests) == 1 else 'WEIGHTS DIFFER'}; medians")
    print(f"{'policy':10s} {'wall s':>8s} {'samples/node-h':>15s} {'lost s/event':>13s} {'redone':>7s}   "
          "ratios to the first")  # fmt: skip
    base: tuple[float, float, float] | None = None
    for policy, outcomes in found.items():
        wall_s = median(o.result.wall_s for o in outcomes)
        rate = median(o.samples_per_node_hour for o in outcomes)
        lost_s = median(o.lost_per_event_s for o in outcomes)
        redone = median(o.result.steps_redone for o in outcomes)
        base = base or (wall_s, rate, lost_s)
        ratios = f"wall {wall_s / base[0]:.2f}, samples {rate / base[1]:.2f}, lost {lost_s / base[2]:.1f}"
        print(f"{policy:10s} {wall_s:8.1f} {rate:15.0f} {lost_s:13.3f} {redone:7.0f}   {ratios}")


if __name__ == "__main__":
    main()
