"""A hundred generations leave nothing behind in the processes that live through them."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloud.local.provider import LocalProvider
from tests.end_to_end.harness import processes_of, quick_template, train
from tests.end_to_end.held import Held, pids_of

GENERATIONS = 100
STEPS_BETWEEN = 24
STEPS = 1400
MORE_THREADS, MORE_FILES = 3, 8
SURVIVORS = ("node1", "node2", "node3")


@dataclass
class Reaper:
    """Ends one worker again and again: each death makes a generation, and each return another.

    A worker comes back by the clock, so while one is awaited steps take longer: how many deaths there are
    must not depend on how fast a machine trains.
    """

    PAUSE_S = 0.1
    next_step: int = 0
    victim: int = 0
    deaths: int = 0
    seen: dict[str, list[Held]] = field(default_factory=dict)

    def __call__(self, step: int, provider: LocalProvider) -> None:
        """After a committed step."""
        victim = pid_of_worker(provider, "node4")
        if step >= STEPS - STEPS_BETWEEN:
            self.wait_for_the_dead(provider)
            return
        if step < self.next_step:
            return
        if victim == self.victim:
            time.sleep(self.PAUSE_S)
            return
        self.next_step, self.victim = step + STEPS_BETWEEN, victim
        for name in SURVIVORS:
            self.seen.setdefault(name, []).append(Held.by(pid_of_worker(provider, name)))
        self.seen.setdefault("coordinator", []).append(Held.by(os.getpid()))
        os.kill(victim, signal.SIGKILL)
        self.deaths += 1

    def wait_for_the_dead(self, provider: LocalProvider) -> None:
        """Groups wait for those who died in the last twenty seconds; how many depends on the machine.

        So the last steps take longer, until nothing waits any more.
        """
        for name in SURVIVORS:
            self.seen[name].append(Held.by(pid_of_worker(provider, name)))
        if not all(self.is_as_before(name) for name in SURVIVORS):
            time.sleep(1.5)

    def is_as_before(self, name: str) -> bool:
        """Whether a process holds about as many threads and files as it did early."""
        early, late = self.seen[name][8:20], self.seen[name][-12:]
        threads = min(held.threads for held in late) - min(held.threads for held in early)
        files = min(held.files for held in late) - min(held.files for held in early)
        return threads <= MORE_THREADS and files <= MORE_FILES


def pid_of_worker(provider: LocalProvider, node: str) -> int:
    """The last worker of a node."""
    return pids_of(provider, node, "worker")[-1]


def small_template() -> dict[str, Any]:
    """A model whose step takes a few milliseconds, and that still needs two stages."""
    template = quick_template()
    return {
        **template,
        "gpt": {"layers": 2, "d_model": 16, "heads": 2, "vocab": 256, "seq": 16},
        "training": {**template["training"], "mini_batch": 4, "micro_batch": 1},
        "device": {**template["device"], "memory_bytes": 300_000},
    }


@pytest.mark.timeout(150)
def test_a_hundred_generations_leave_nothing_behind(tmp_path: Path) -> None:
    """Memory, threads and open files of workers and of the coordinator stay what they were."""
    reaper = Reaper()
    run = train(tmp_path, "long", reaper, step_s=0.0, nodes=4, steps=STEPS, template=small_template())
    assert run.result.migrations[-1].generation >= GENERATIONS
    assert run.result.state == "done"
    for name, held in reaper.seen.items():
        early, late = held[8:20], held[-12:]
        assert reaper.is_as_before(name), (name, held)
        assert min(h.megabytes for h in late) <= min(h.megabytes for h in early) + 2.5, name
    assert processes_of(tmp_path) == []
