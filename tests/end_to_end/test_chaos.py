"""Faults of every kind, dozens in one run, several at a time: the end is that of a quiet run."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from cloud.local.provider import LocalProvider
from tests.end_to_end.harness import processes_of, train

STEPS = 110
NODES = 7


class Storm:
    """Called after every committed step: now and then it ends workers, agents, nodes and connections."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._next = 4
        self.struck: dict[str, int] = {}
        self.handles: list[int] = []
        self.threads: list[int] = []

    def __call__(self, step: int, provider: LocalProvider) -> None:
        """One committed step."""
        if step < self._next or step > STEPS - 5:
            return
        self._next = step + self._random.randint(2, 7)
        names = sorted(provider.names())
        for name in self._random.sample(names, min(len(names), self._random.choice([1, 1, 1, 2, 3]))):
            kinds = ["worker", "worker", "agent", "cut", "notice", "cut and worker", "stop"]
            kind = self._random.choice(kinds)
            delay_s = self._random.uniform(0.0, 0.15)  # anywhere within a step
            provider.later(delay_s, lambda kind=kind, name=name: self._strike(kind, name, provider))

    def _strike(self, kind: str, name: str, provider: LocalProvider) -> None:
        if name not in provider.names():
            return
        node = provider.node(name)
        self.struck[kind] = self.struck.get(kind, 0) + 1
        if "cut" in kind:
            node.cut()
        for role in ("worker", "agent"):
            pids = [record.pid for record in node.register.records() if record.role == role]
            if role in kind and pids:
                self._signal(pids[-1], signal.SIGKILL)
            elif kind == "stop" and role == "worker" and pids and self.struck[kind] <= 2:
                self._signal(pids[-1], signal.SIGSTOP)
            elif role == "worker" and pids:
                self._measure(pids[-1])
        if kind == "notice":
            provider.announce(name, self._random.choice([0.05, 0.5, 1.0]))
            provider.appear(f"spare{self.struck[kind]}")

    def _signal(self, pid: int, number: signal.Signals) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    def _measure(self, pid: int) -> None:
        try:
            self.handles.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
            self.threads.append(len(list(Path(f"/proc/{pid}/task").iterdir())))
        except OSError:
            return


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", [int(os.environ.get("PARCAE_CHAOS_SEED", "1"))])
def test_a_storm_changes_nothing(tmp_path: Path, seed: int) -> None:
    """Killed workers and agents, cut connections, hung workers, notices that leave no time: equal weights."""
    quiet = train(tmp_path, "quiet", nodes=2, steps=STEPS)
    storm = Storm(seed)
    wild = train(tmp_path, "wild", storm, nodes=NODES, steps=STEPS, backup_every=5)
    print(storm.struck, wild.kinds, len(wild.result.migrations), max(storm.handles), max(storm.threads))
    assert wild.result.state == "done"
    assert (wild.result.samples_lost, wild.result.samples_repeated) == (0, 0)
    assert wild.losses == quiet.losses
    assert wild.result.weights_sha256 == quiet.result.weights_sha256
    assert sum(storm.struck.values()) >= 20
    assert processes_of(tmp_path) == []
    # no worker gathers sockets or threads, however many generations it has lived through
    assert max(storm.handles) < 150
    assert max(storm.threads) < 80
