"""A job whose fleet changes on purpose: what happens to it, when its steps are committed, what that costs."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from cloud.local.provider import LocalProvider
from parcae_cli.catalogue import load_measured_costs
from runtime.control.job.job import JobResult, LaunchRequest, MigrationRecord
from runtime.control.job.journal import Journal
from runtime.control.job.launch import run

FOLLOWING = 6  # steps after a change that say how long an ordinary one takes


@dataclass
class Job:
    """A finished job: its result, when each step was committed (seconds, any clock), how many nodes lived."""

    result: JobResult
    at_s: list[float] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)

    def step_s(self, first: int) -> float:
        """An ordinary step's time, from those that follow step `first`."""
        changed = {record.step for record in self.result.migrations}
        later = range(first + 1, min(len(self.at_s), first + 1 + FOLLOWING))
        plain = [self.at_s[k] - self.at_s[k - 1] for k in later if k not in changed]
        return median(plain or [b - a for a, b in pairwise(self.at_s)])

    def pause_steps(self, record: MigrationRecord) -> float:
        """The pause of a change, in ordinary steps of the layout after it."""
        ordinary = self.step_s(record.step)
        return max(0.0, (self.at_s[record.step] - self.at_s[record.step - 1]) / ordinary - 1.0)

    def between(self, first: int, last: int) -> tuple[float, float]:
        """Seconds, and node-seconds, from the commit before step `first` to that of step `last`."""
        spans = [(self.at_s[k] - self.at_s[k - 1], self.nodes[k]) for k in range(first, last + 1)]
        return sum(span for span, _ in spans), sum(span * nodes for span, nodes in spans)

    def after(self, moments: Sequence[float]) -> list[float]:
        """Seconds from each of these deaths to the next commit, less an ordinary step of the layout then."""
        found = []
        changed = sorted(record.step for record in self.result.migrations if not record.noticed)
        for moment in moments:
            step = next((k for k, at_s in enumerate(self.at_s) if at_s > moment), None)
            # a vote that was under way counts: the death shows in the first commit of a new generation
            first = next((s for s in changed if step is not None and step <= s <= step + 1), None)
            if first is not None:
                found.append(self.at_s[first] - moment - self.step_s(first))
        return found


class Weather:
    """What happens to the fleet: called after every committed step, it acts every `gap` steps.

    An action is one or more of the words join, notice, kill, stop, dark and quiet; `dark` needs a network of
    one's own (tests/end_to_end/own_network.py).
    """

    def __init__(self, home: Path, name: str, gap: int, actions: Sequence[str], notice_s: float) -> None:
        self._journal = Journal(home)
        self._name, self._gap, self._notice_s = name, gap, notice_s
        self._actions = list(actions)
        self._born, self._late = 0, False
        self._noticed: set[str] = set()
        self._draw = random.Random(1)
        self.struck: dict[str, list[float]] = {"SIGKILL": [], "SIGSTOP": [], "packets dropped": []}

    def __call__(self, step: int, provider: LocalProvider) -> None:
        """A step was committed."""
        if not self._actions or (step % self._gap and not self._late):
            return
        words = self._actions[0].split()
        hit = [word for word in words if word not in ("join", "quiet")]
        self._late = len(self._free(provider)) < len(hit)  # the picture of the job is not there yet
        if self._late:
            return
        del self._actions[0]
        for word in words:
            getattr(self, "_" + word)(provider)

    def _members(self, provider: LocalProvider) -> list[str]:
        """Who works, pipeline by pipeline."""
        snapshot = self._journal.read_snapshot(self._name) or {"nodes": []}
        nodes = [n for n in snapshot["nodes"] if n["position"] and n["state"] == "running"]
        placed = [n["name"] for n in sorted(nodes, key=lambda node: tuple(node["position"]))]
        return [name for name in placed if name in provider.names()]

    def _free(self, provider: LocalProvider) -> list[str]:
        """Who works and has not been warned yet."""
        return [name for name in self._members(provider) if name not in self._noticed]

    def _join(self, provider: LocalProvider) -> None:
        self._born += 1
        provider.appear(f"new{self._born}")

    def _notice(self, provider: LocalProvider) -> None:
        """Noticed together, nodes are of one pipeline, so that every stage keeps a holder."""
        name = self._free(provider)[0]
        self._noticed.add(name)
        provider.take(name, self._notice_s)

    def _quiet(self, provider: LocalProvider) -> None:
        pass

    def _kill(self, provider: LocalProvider) -> None:
        self._strike(provider, signal.SIGKILL)

    def _stop(self, provider: LocalProvider) -> None:
        self._strike(provider, signal.SIGSTOP)

    def _dark(self, provider: LocalProvider) -> None:
        from tests.end_to_end.own_network import go_dark

        name = self._draw.choice(self._members(provider))

        def strike() -> None:
            go_dark(provider, name)
            self.struck["packets dropped"].append(time.monotonic())

        provider.later(self._draw.uniform(0.0, 0.08), strike)

    def _strike(self, provider: LocalProvider, number: signal.Signals) -> None:
        name = self._draw.choice(self._members(provider))

        def strike() -> None:
            workers = [r.pid for r in provider.node(name).register.records() if r.role == "worker"]
            os.kill(workers[-1], number)
            self.struck[number.name].append(time.monotonic())

        provider.later(self._draw.uniform(0.0, 0.08), strike)


def train(
    home: Path,
    name: str,
    template: dict[str, Any],
    nodes: tuple[int, int],
    steps: int,
    weather: Callable[[int, Any], None] | None,
    **options: Any,
) -> Job:
    """Run a job that begins with nodes[0] nodes and wants nodes[1]."""
    trace = home / f"{name}.csv"
    trace.write_text("time_s,event,instance\n" + "".join(f"0,add,i{k}\n" for k in range(nodes[0])))
    at_s: list[float] = []
    living: list[int] = []

    def watch(step: int, provider: Any) -> None:
        at_s.append(time.monotonic())
        living.append(len(provider.names()))
        if weather is not None:
            weather(step, provider)

    request = LaunchRequest(
        name=name,
        model=template["name"],
        home=home,
        nodes=nodes[1],
        trace=trace,
        steps=steps,
        seed=1,
        template=template,
        cost_table=load_measured_costs(),
        **{"policy": "reactive", **options},
    )
    result = run(request, watch)
    if result.state != "done":
        raise SystemExit(f"the job {name} ended as {result.state}: {result.why}")
    return Job(result, at_s, living)


def kind_of(record: MigrationRecord) -> str:
    """The kind of a change; a node that comes and makes the layout wider is a join."""
    wider = record.before is not None and record.after.pipelines > record.before.pipelines
    if wider and record.nodes_joined and str(record.kind) != "pipeline":
        return "join"
    return str(record.kind)
