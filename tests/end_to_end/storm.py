"""Faults of every kind in one job, several at a time, from one seed; and what must hold in the end.

Two sources of faults. Workers end themselves at named points of a step (`runtime.engine.faults`), which
reaches every phase; every node that comes has a few such points to die at, of which its first worker reaches
one. And between commits the storm ends, stops and cuts what it likes, and gives notices that come true,
come too late, and do not come true.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloud.local.provider import LocalProvider
from parcae_cli.catalogue import load_template
from runtime.control.job.launch import resume
from runtime.engine.faults import POINTS, SAID
from tests.end_to_end.harness import Finished, lines, processes_of, train
from tests.end_to_end.held import Held, pids_of

NODES = 6
CLOSE = 1e-3  # what roundings alone can make of a loss in some hundred steps
NAMES = 60  # that nodes may have, one after the other
ACTIONS = (
    "worker",
    "workers",
    "agent",
    "agent stopped",
    "stop",
    "cut",
    "cut and worker",
    "node",
    "nodes",
    "name again",
    "backup",
    "notice",
    "notices",
    "notice too short",
    "killed before its deadline",
    "spared",
    "withdrawn",
    "put off",
)


@dataclass(frozen=True)
class Kind:
    """A way of training that the storm blows at."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    gpt: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    memory_bytes: int = 1_700_000

    @property
    def exact(self) -> bool:
        """Whether every bit of a storm's outcome is that of a quiet run."""
        return bool(self.options.get("exact", True))


_REAL = {"dropout": 0.1, "schedule": "cosine", "warmup_steps": 5, "decay_steps": 80}
KINDS = (
    Kind("plain"),
    Kind("gradients to the backup", {"backup": "gradients"}),
    Kind("two GPUs a node", {"gpus_per_node": 2, "nodes": 4}),
    Kind("backup every 3", {"backup_every": 3}),
    Kind("tied", {}, {"tied_embeddings": True}, {**_REAL, "eval_every": 7, "eval_samples": 8}),
    Kind("all at the switch", {"copy_ahead": False}),
    Kind("reactive", {"policy": "reactive"}),
    Kind("two GPUs a node, gradients", {"gpus_per_node": 2, "nodes": 4, "backup": "gradients"}),
    Kind("no backup", {"backup": "none"}),
    Kind("checkpoint and restart", {"policy": "checkpoint", "checkpoint_every": 5}),
    Kind("redundancy", {"policy": "redundancy"}, {}, {}, 3_000_000),
    Kind("sums in fp32, gradients", {"exact": False, "backup": "gradients"}),
    Kind("sums in fp32", {"exact": False, "backup_every": 3}),
    Kind("the launcher is killed too"),
)


def template_of(kind: Kind) -> dict[str, Any]:
    """A model whose step takes some 15 ms, and that needs two stages or more."""
    made = load_template("gpt-tiny")
    shape = {**made["gpt"], "layers": 6, "d_model": 32, "heads": 2, "vocab": 256, "seq": 32, **kind.gpt}
    training = {**made["training"], "mini_batch": 8, "micro_batch": 1, **kind.training}
    device = {**made["device"], "memory_bytes": kind.memory_bytes}
    return {**made, "gpt": shape, "training": training, "device": device}


def scripted(draw: random.Random, steps: int, gpus: int) -> tuple[dict[str, Any], ...]:
    """Where the first workers of all nodes that may come would end themselves."""
    faults = []
    for number in range(NAMES):
        name = f"n{number}" + (f"/{draw.randrange(gpus)}" if gpus > 1 and draw.random() < 0.5 else "")
        for point in draw.sample(POINTS, 2):
            step = draw.randrange(3, steps) if number < NODES else None
            faults.append({"node": name, "step": step, "point": point})
    return tuple(faults)


class Storm:
    """Called after every committed step: now and then it strikes."""

    def __init__(self, seed: int, steps: int, folder: Path, nodes: int = NODES, first: int = NODES) -> None:
        """`folder` is the job's; nodes called n`first` and so on have not been there yet."""
        self._draw = random.Random(seed)
        self._steps, self._folder, self._nodes = steps, folder, nodes
        self._next, self._last_s, self._born = 4, 0.0, first
        self._left: list[str] = []
        self.struck: Counter[str] = Counter()
        self.seen: list[Held] = []
        self.own: list[Held] = []

    def __call__(self, step: int, provider: LocalProvider) -> None:
        """One committed step."""
        if step < self._next or step > self._steps - 3:
            return
        self._next = step + self._draw.randint(1, 5)
        self.own.append(Held.by(os.getpid()))
        if not self._left:
            self._left = self._draw.sample(ACTIONS, len(ACTIONS))
        delay_s = self._draw.uniform(0.0, 0.1)  # anywhere within a step, a recovery or a copy
        kind = self._left.pop()
        provider.later(delay_s, lambda: self._strike(kind, provider))

    def _strike(self, kind: str, provider: LocalProvider) -> None:
        names = sorted(provider.names())
        if not names:
            return
        several = min(len(names), self._draw.randint(2, 3))
        chosen = self._draw.sample(names, several if kind.endswith("s") else 1)
        self.struck[kind] += 1
        for name in chosen:
            self._befall(kind.removesuffix("s"), name, provider)
            for pid in pids_of(provider, name, "worker")[-1:] if name in provider.names() else ():
                self._measure(pid)
        while len(provider.present) < self._nodes:
            self._appear(provider)

    def _appear(self, provider: LocalProvider) -> None:
        provider.appear(f"n{self._born}")
        self._born += 1

    def _befall(self, kind: str, name: str, provider: LocalProvider) -> None:
        node = provider.node(name)
        soon_s = self._draw.uniform(0.3, 1.5)
        match kind:
            case "worker" | "agent":
                self._signal(provider, name, kind, signal.SIGKILL)
            case "agent stopped":
                self._signal(provider, name, "agent", signal.SIGSTOP)
            case "stop":
                self._signal(provider, name, "worker", signal.SIGSTOP)
            case "cut":
                node.cut()
            case "cut and worker":
                node.cut()
                self._signal(provider, name, "worker", signal.SIGKILL)
            case "node":
                provider.kill(name)
            case "name again":
                node.metadata.interrupt(time.time() + soon_s)
                provider.later(0.2, lambda: self._again(name, provider))
            case "backup":
                for pid in filter(is_backup, processes_of(self._folder)):
                    os.kill(pid, signal.SIGKILL)
            case "notice":
                provider.announce(name, soon_s)
                self._appear(provider)
            case "notice too short":
                provider.announce(name, 0.05)
                self._appear(provider)
            case "killed before its deadline":
                provider.announce(name, 3.0)
                provider.later(soon_s, lambda: provider.kill(name))
                self._appear(provider)
            case "spared":
                node.metadata.interrupt(time.time() + soon_s)
            case "withdrawn":
                node.metadata.interrupt(time.time() + 2 * soon_s)
                provider.later(soon_s, lambda: node.metadata.values.pop("spot/instance-action", None))
            case "put off":
                node.metadata.interrupt(time.time() + soon_s)
                provider.later(0.3, lambda: name in provider.names() and provider.announce(name, 2.0))

    def _again(self, name: str, provider: LocalProvider) -> None:
        provider.kill(name)
        provider.appear(name)

    def _signal(self, provider: LocalProvider, name: str, role: str, number: signal.Signals) -> None:
        for pid in pids_of(provider, name, role)[-1:]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return

    def _measure(self, pid: int) -> None:
        try:
            self.seen.append(Held.by(pid))
        except OSError:
            return


def is_backup(pid: int) -> bool:
    """Whether this process holds the backup."""
    try:
        return b"parcae_cli.backup" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def quiet(home: Path, kind: Kind, steps: int) -> Finished:
    """The run that a storm must equal."""
    options = {"nodes": 2} if not kind.options.get("gpus_per_node") else {"nodes": 1, "gpus_per_node": 2}
    return train(home, "quiet", steps=steps, template=template_of(kind), **options)


def blow(home: Path, kind: Kind, seed: int, steps: int) -> tuple[Finished, Storm, Counter[str]]:
    """One storm; the third is how many workers ended themselves at each point."""
    options = {"nodes": NODES, "backup_every": 5, **kind.options}
    storm = Storm(seed, steps, home / "jobs" / "wild", options["nodes"], options["nodes"])
    faults = scripted(random.Random(seed), steps, options.get("gpus_per_node", 1))
    trace = "".join(f"0,add,n{number}\n" for number in range(options["nodes"]))
    options |= {"steps": steps, "speed": 60, "template": template_of(kind), "faults": faults}
    run = train(home, "wild", storm, trace, step_s=0.0, **options)
    return run, storm, deaths(home / "jobs" / "wild")


def go_on(home: Path, seed: int, steps: int, attempt: int) -> tuple[Finished, Storm]:
    """Resume the job of a storm whose launcher was killed, in another storm; nodes have other names."""
    storm = Storm(seed + 1000 * attempt, steps, home / "jobs" / "wild", NODES, 100 * attempt)
    result = resume(home, "wild", storm)
    folder = home / "jobs" / "wild"
    return Finished(result, lines(folder / "metrics.jsonl"), lines(folder / "events.jsonl")), storm


def deaths(job: Path) -> Counter[str]:
    """How many workers ended themselves at each point, from what they said before."""
    said: Counter[str] = Counter()
    for log in (job / "logs").glob("*.log"):
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith(SAID):
                said[line.removeprefix(SAID)] += 1
    return said


def wrong_with(run: Finished, base: Finished, home: Path, exact: bool = True) -> list[str]:
    """What does not hold that must hold, whatever happened; unless `exact` losses need only be close."""
    result, found = run.result, []
    if result.state != "done":
        found.append(f"it ended as {result.state}: {result.why}")
    if (result.samples_lost, result.samples_repeated) != (0, 0):
        found.append(f"{result.samples_lost} samples lost, {result.samples_repeated} repeated")
    if [row["step"] for row in run.metrics] != [row["step"] for row in base.metrics]:
        found.append("the ledger's steps are not those of a quiet run")
    elif not exact:
        pairs = enumerate(zip(run.losses, base.losses, strict=True))
        if far := [n for n, (a, b) in pairs if abs(a - b) > CLOSE * b]:
            found.append(f"the losses are far apart from step {far[0]} on")
    elif run.losses != base.losses:
        first = next(n for n, (a, b) in enumerate(zip(run.losses, base.losses, strict=True)) if a != b)
        found.append(f"the losses differ from step {first} on")
    if exact and result.weights_sha256 != base.result.weights_sha256:
        found.append("the weights differ")
    if left := processes_of(home):
        found.append(f"processes {left} are left")
    return found
