"""Whole jobs on the local cloud, as the command runs them, with room to interfere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloud.local.provider import LocalProvider
from parcae_cli.catalogue import load_measured_costs, load_template
from runtime.control.job.job import JobResult, LaunchRequest
from runtime.control.job.launch import run
from tests.end_to_end.brake import Pace

SEED = 11
STEPS, LONG_STEPS = 60, 200  # of the undisturbed runs in conftest.py
# Where something is to happen to a job, a step takes so long at least, and after the last event of its trace
# there is so much time for what follows from it.
STEP_S, AFTER_TRACE_S = 0.05, 1.5


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
    step_s: float = STEP_S,
    **options: Any,
) -> Finished:
    """Run gpt-tiny, if not told otherwise; `trace` is a trace's text, `options` are LaunchRequest's.

    No step takes less than `step_s`, unless nothing is to happen to the job.
    """
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
    if watch is None and trace is None and not request.faults:
        result = run(request)
    else:
        result = run_in_step(request, watch, max(step_s, trace_s(request, trace) / request.steps))
    folder = home / "jobs" / name
    return Finished(result, lines(folder / "metrics.jsonl"), lines(folder / "events.jsonl"))


def run_in_step(
    request: LaunchRequest, watch: Callable[[int, LocalProvider], None] | None, step_s: float
) -> JobResult:
    """Run a job whose steps take `step_s` at least."""
    with pytest.MonkeyPatch.context() as patch:
        pace = Pace(patch, step_s)

        def stepped(step: int, provider: Any) -> None:
            pace.stepped()
            if watch is not None:
                watch(step, provider)

        return run(request, stepped)


def trace_s(request: LaunchRequest, trace: str | None) -> float:
    """How long the steps of a job must take altogether for all of its trace to happen; 0: it has none."""
    last_s = max((float(line.split(",")[0]) for line in (trace or "").splitlines()), default=0.0)
    return last_s / request.speed + AFTER_TRACE_S if last_s else 0.0


def quick_template() -> dict[str, Any]:
    """gpt-tiny with a third of its mini-batch."""
    template = load_template("gpt-tiny")
    return {**template, "training": {**template["training"], "mini_batch": 12}}


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
