"""What changes of the fleet cost a running job, in one run: pauses by kind, goodput, speed of transfers.

Whole jobs on the local cloud. A pause is the time from the last commit before a change to the first after it,
less an ordinary step of the new layout (median of the steps that follow). Everything shares this machine's
cores, nodes that boot included, so the figures are those of a busy machine.

Run: python benchmarks/pause.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from cloud.local.provider import LocalProvider
from parcae_cli.catalogue import load_measured_costs, load_template
from runtime.control.job.job import JobResult, LaunchRequest, MigrationRecord
from runtime.control.job.journal import Journal
from runtime.control.job.launch import run

FOLLOWING = 6  # steps after a change that say how long an ordinary one takes


@dataclass
class Job:
    """A finished job: its result, and when each step was committed (seconds, any clock)."""

    result: JobResult
    at_s: list[float]

    def step_s(self, first: int) -> float:
        """An ordinary step's time, from those that follow step `first`."""
        changed = {record.step for record in self.result.migrations}
        later = range(first + 1, min(len(self.at_s), first + 1 + FOLLOWING))
        plain = [self.at_s[k] - self.at_s[k - 1] for k in later if k not in changed]
        return median(plain or [b - a for a, b in pairwise(self.at_s)])

    def pause_steps(self, record: MigrationRecord) -> float:
        """The pause of a change, in steps."""
        ordinary = self.step_s(record.step)
        return max(0.0, (self.at_s[record.step] - self.at_s[record.step - 1]) / ordinary - 1.0)


class Weather:
    """What happens to the fleet: called after every committed step, it acts every `gap` steps."""

    def __init__(self, home: Path, name: str, gap: int, actions: Sequence[str], notice_s: float) -> None:
        self._journal = Journal(home)
        self._name, self._gap, self._notice_s = name, gap, notice_s
        self._actions = list(actions)
        self._born = 0
        self._draw = random.Random(1)
        self.killed: dict[str, list[float]] = {"SIGKILL": [], "SIGSTOP": []}

    def __call__(self, step: int, provider: LocalProvider) -> None:
        """A step was committed."""
        if step % self._gap or not self._actions:
            return
        for word in self._actions.pop(0).split():
            getattr(self, "_" + word)(provider)

    def _members(self, provider: LocalProvider) -> list[str]:
        snapshot = self._journal.read_snapshot(self._name) or {"nodes": []}
        placed = [n["name"] for n in snapshot["nodes"] if n["position"] and n["state"] == "running"]
        return [name for name in placed if name in provider.names()]

    def _join(self, provider: LocalProvider) -> None:
        self._born += 1
        provider.appear(f"new{self._born}")

    def _notice(self, provider: LocalProvider) -> None:
        provider.announce(self._members(provider)[0], self._notice_s)

    def _quiet(self, provider: LocalProvider) -> None:
        pass

    def _kill(self, provider: LocalProvider) -> None:
        self._strike(provider, signal.SIGKILL)

    def _stop(self, provider: LocalProvider) -> None:
        self._strike(provider, signal.SIGSTOP)

    def _strike(self, provider: LocalProvider, number: signal.Signals) -> None:
        name = self._draw.choice(self._members(provider))

        def strike() -> None:
            workers = [r.pid for r in provider.node(name).register.records() if r.role == "worker"]
            os.kill(workers[-1], number)
            self.killed[number.name].append(time.monotonic())

        provider.later(self._draw.uniform(0.0, 0.08), strike)


def train(
    home: Path, name: str, template: dict[str, Any], nodes: tuple[int, int], steps: int,
    weather: Callable[[int, Any], None] | None, **options: Any,
) -> Job:  # fmt: skip
    """Run a job that begins with nodes[0] nodes and wants nodes[1]."""
    trace = home / f"{name}.csv"
    trace.write_text("time_s,event,instance\n" + "".join(f"0,add,i{k}\n" for k in range(nodes[0])))
    at_s: list[float] = []

    def watch(step: int, provider: Any) -> None:
        at_s.append(time.monotonic())
        if weather is not None:
            weather(step, provider)

    request = LaunchRequest(
        name=name, model=template["name"], home=home, nodes=nodes[1], trace=trace, steps=steps, seed=1,
        policy="reactive", template=template, cost_table=load_measured_costs(), **options,
    )  # fmt: skip
    return Job(run(request, watch), at_s)


def kind_of(record: MigrationRecord) -> str:
    """The kind of a change; a node that comes and makes the layout wider is a join."""
    wider = record.before is not None and record.after.pipelines > record.before.pipelines
    if wider and record.nodes_joined and str(record.kind) != "pipeline":
        return "join"
    return str(record.kind)


def row(name: str, values: Sequence[float], unit: str, more: str = "") -> None:
    """One line of figures."""
    if values:
        ordered = sorted(values)
        p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
        print(f"  {name:24s} {len(ordered):4d} {median(ordered):9.3f} {p95:9.3f} {unit}  {more}", flush=True)


@dataclass
class Kinds:
    """Pauses of noticed changes by kind, with what they moved."""

    pauses: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    ahead: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    switch: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, job: Job) -> None:
        """Count a job's changes."""
        for record in job.result.migrations:
            if record.noticed:
                kind, moved = kind_of(record), record.transfer
                self.pauses[kind].append(job.pause_steps(record))
                self.ahead[kind].append(moved.bytes_ahead / 1e6)
                self.switch[kind].append((moved.bytes_at_switch / 1e6, moved.fetch_s * 1e3))

    def show(self) -> None:
        """Print them."""
        everything = [pause for pauses in self.pauses.values() for pause in pauses]
        for kind, pauses in sorted(self.pauses.items()):
            at_switch = self.switch[kind]
            row(kind, pauses, "steps",
                f"{median(self.ahead[kind]):6.1f} MB ahead, {median(m for m, _ in at_switch):6.1f} MB at the "
                f"switch in {median(ms for _, ms in at_switch):4.0f} ms")  # fmt: skip
        row("all", everything, "steps")


# 4 -> 6 (join), a spare for a member (inter-stage), 6 -> 5 (intra-stage), 5 -> 4, 4 -> 3, back (pipeline)
ROUND = ("join join", "join", "notice", "notice", "notice", "notice", "join")


def noticed(home: Path, name: str, template: dict[str, Any], gap: int, rounds: int, notice_s: float,
            copy_ahead: bool) -> tuple[Job, Kinds]:  # fmt: skip
    """Changes of every kind, with notice."""
    weather = Weather(home, name, gap, ROUND * rounds, notice_s)
    steps = gap * (len(ROUND) * rounds + 2)
    job = train(home, name, template, (4, 8), steps, weather, copy_ahead=copy_ahead)
    kinds = Kinds()
    kinds.add(job)
    return job, kinds


def after(job: Job, moments: Sequence[float]) -> list[float]:
    """Seconds from each of these moments to the next commit, less an ordinary step of the layout after it."""
    found = []
    for moment in moments:
        step = next((k for k, at_s in enumerate(job.at_s) if at_s > moment), None)
        # a vote that was under way counts: the death shows in the first commit of a new generation
        changed = sorted(r.step for r in job.result.migrations if not r.noticed)
        first = next((s for s in changed if step is not None and step <= s <= step + 1), None)
        if first is not None:
            found.append(job.at_s[first] - moment - job.step_s(first))
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer changes of each kind")
    parser.add_argument("--only", default="", help="tiny, 30m, deaths, goodput or transfer")
    parser.add_argument("--json", type=Path, help="where to write the pauses as JSON")
    args = parser.parse_args()
    tiny, large = load_template("gpt-tiny"), load_template("gpt-30m")
    large = {**large, "training": {**large["training"], "mini_batch": 4}}
    scale = 1 if args.quick else 3
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name, template, gap, rounds, notice_s in (
            ("tiny", tiny, 24, scale, 1.6), ("30m", large, 5, 1, 12.0)
        ):  # fmt: skip
            if args.only not in ("", name):
                continue
            for ahead in (True, False):
                job, kinds = noticed(home, f"{name}-{ahead}".lower(), template, gap, rounds, notice_s, ahead)
                ordinary = median(b - a for a, b in pairwise(job.at_s))
                how = "state copied ahead" if ahead else "all state sent at the switch"
                print(f"{template['name']}, noticed, {how}; step {ordinary * 1e3:.0f} ms"
                      f"            count    median       p95")  # fmt: skip
                kinds.show()
                found[f"{name} {ahead}"] = kinds.pauses
        if args.only in ("", "deaths"):
            deaths(home, tiny, 8 * scale)
        if args.only in ("", "goodput"):
            goodput(home, tiny, 2 * scale)
        if args.only in ("", "transfer"):
            subprocess.run([sys.executable, str(Path(__file__).with_name("transfer.py"))], check=True)
    if args.json:
        args.json.write_text(json.dumps(found))


def deaths(home: Path, template: dict[str, Any], count: int) -> None:
    """Workers killed and stopped without notice, at any moment of a step."""
    words = ["kill"] * count + ["stop"] * max(2, count // 4)
    gap = 24
    weather = Weather(home, "deaths", gap, words, 1.0)
    # A stopped worker is found by its silence, which takes as long as many steps.
    job = train(home, "deaths", template, (8, 8), gap * (len(words) + 3), weather)
    print("gpt-tiny, without notice: to the next commit, less the step that is done again")
    for name, moments in weather.killed.items():
        row(name, after(job, moments), "s")


def goodput(home: Path, template: dict[str, Any], blocks: int) -> None:
    """Blocks of 40 steps with a change every 20 steps, beside blocks without; nodes are replaced."""
    change, quiet = ["join notice", "join notice"], ["quiet", "quiet"]
    weather = Weather(home, "goodput", 20, ["quiet", *(change + quiet) * blocks], 1.6)
    job = train(home, "goodput", template, (8, 9), 20 * (4 * blocks + 2), weather)
    busy, calm = [], []
    for block in range(2 * blocks):
        first = 20 + 40 * block
        passed_s = job.at_s[first + 39] - job.at_s[first - 1]
        (calm if block % 2 else busy).append(passed_s / 40)
    ratios = [c / b for b, c in zip(busy, calm, strict=True)]
    print(f"gpt-tiny, a change every 20 steps: {len(job.result.migrations)} changes, samples over those of "
          f"quiet blocks: median {median(ratios):.3f}, of all {sum(calm) / sum(busy):.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
