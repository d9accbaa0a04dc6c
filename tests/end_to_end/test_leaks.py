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
STEPS = 1600
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
        if step < self.next_step:
            return
        if victim == self.victim:
            time.sleep(self.PAUSE_S)
            return
        self.next_step, self.victim = step + STEPS_BETWEEN, victim
        for name in SURVIVORS:
            self.seen.setdefault(name, []).append(Held.by(pid_of_worker(provider, name)))
        self.seen.setdefault("coordinator", []).append(Held.by(os.getpid()))
        if step < STEPS - STEPS_BETWEEN:
            os.kill(victim, signal.SIGKILL)
            self.deaths += 1


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
    run = train(tmp_path, "long", reaper, nodes=4, steps=STEPS, template=small_template())
    assert run.result.migrations[-1].generation >= GENERATIONS
    assert run.result.state == "done"
    for name, held in reaper.seen.items():
        # groups of the last twenty seconds may still wait for their dead; hence the least of several
        early, late = held[8:20], held[-12:]
        assert min(h.threads for h in late) <= min(h.threads for h in early) + 3, name
        assert min(h.files for h in late) <= min(h.files for h in early) + 8, name
        assert min(h.megabytes for h in late) <= min(h.megabytes for h in early) + 2.5, name
    assert processes_of(tmp_path) == []
