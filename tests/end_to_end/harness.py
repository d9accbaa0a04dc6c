"""Whole jobs on the local cloud, as the command runs them, with room to interfere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.local.provider import LocalProvider
from parcae_cli.catalogue import load_measured_costs, load_template
from runtime.control.job.job import JobResult, LaunchRequest
from runtime.control.job.launch import run

SEED = 11
STEPS, LONG_STEPS = 60, 200  # of the undisturbed runs in conftest.py


@dataclass(frozen=True)
class Finished:
    """A job's result, its lines of metrics.jsonl and its events."""

    result: JobResult
    metrics: list[dict[str, Any]]
    events: list[dict[str, Any]]

    @property
    def losses(self) -> list[float]:
        """The loss of every step, in order."""
        return [line["loss"] for line in self.metrics]

    @property
    def kinds(self) -> set[str]:
        """The kinds of migration that were carried out."""
        return {str(record.kind) for record in self.result.migrations}


def train(
    home: Path,
    name: str,
    watch: Callable[[int, LocalProvider], None] | None = None,
    trace: str | None = None,
    **options: Any,
) -> Finished:
    """Run gpt-tiny, if not told otherwise; `trace` is a trace's text, `options` are LaunchRequest's."""
    path = None
    if trace is not None:
        path = home / f"{name}.csv"
        path.write_text("time_s,event,instance\n" + trace)
    fields: dict[str, Any] = {"model": "gpt-tiny", "template": quick_template()}
    fields |= {"nodes": 6, "steps": 60, "seed": SEED, **options}
    request = LaunchRequest(
        name=name,
        home=home,
        trace=path,
        cost_table=load_measured_costs(),
        **fields,
    )
    result = run(request, watch)
    folder = home / "jobs" / name
    return Finished(result, lines(folder / "metrics.jsonl"), lines(folder / "events.jsonl"))


def quick_template() -> dict[str, Any]:
    """gpt-tiny with two thirds of its mini-batch."""
    template = load_template("gpt-tiny")
    return {**template, "training": {**template["training"], "mini_batch": 24}}


def lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def processes_of(folder: Path) -> list[int]:
    """The living processes that work in this folder, or were told of it on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
            where = str((entry / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in command or where.startswith(str(folder)):
            found.append(int(entry.name))
    return found


def assert_equal(run: Finished, base: Finished, folder: Path) -> None:
    """Nothing lost, nothing repeated, the same losses and weights, and no process left."""
    result = run.result
    assert result.state == "done"
    assert (result.samples_lost, result.samples_repeated) == (0, 0)
    assert [line["step"] for line in run.metrics] == list(range(result.steps))
    assert run.losses == base.losses
    assert result.weights_sha256 == base.result.weights_sha256
    left = processes_of(folder)
    assert left == [], [told_of(pid) for pid in left]


def told_of(pid: int) -> str:
    """What the kernel says of a process that should not be there."""
    try:
        status = (Path("/proc") / str(pid) / "status").read_text().split("\n")
        command = (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return f"{pid} has gone meanwhile"
    return f"{command}: {' '.join(status[:8])}"
