"""A job on nodes with two GPUs: their workers come and go together, and the weights come out the same."""

from __future__ import annotations

import os
import signal
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cloud.local.provider import LocalProvider
from runtime.control import messages
from runtime.control.fleet.link_times import LinkTimes
from runtime.control.job.journal import Journal
from runtime.control.providers import local
from runtime.control.training.coordinator import Coordinator
from tests.end_to_end.harness import STEPS, Finished, assert_equal, processes_of, train

pytestmark = pytest.mark.timeout(150)

LONGER = 120


def workers_of(provider: LocalProvider, node: str) -> list[int]:
    """The pids of the workers that were started on a node, in order."""
    return [record.pid for record in provider.node(node).register.records() if record.role == "worker"]


def test_nodes_with_two_gpus_lose_both_and_the_weights_are_equal(tmp_path: Path) -> None:
    """Notices, deaths of nodes, of a worker and of an agent; against a run that nothing happens to."""
    base = train(tmp_path, "base", nodes=4, steps=LONGER)
    seen: list[dict[str, Any]] = []
    workers: set[int] = set()

    def watch(step: int, provider: LocalProvider) -> None:
        if step in (5, 25):
            journal = Journal(tmp_path)
            snapshot = journal.read_snapshot("two")
            journal.close()
            assert snapshot is not None
            seen.append(snapshot)
        if step == 5:
            workers.update(pid for node in ("a0", "a1", "a2", "a3") for pid in workers_of(provider, node))
        if step == 50:
            records = provider.node("b0").register.records()
            os.kill([record.pid for record in records if record.role == "agent"][-1], signal.SIGKILL)

    trace = "".join(f"0,add,a{k}\n" for k in range(4))
    trace += "60,remove,a0\n90,add,b0\n150,kill,a1\n200,add,b1\n330,kill,a2\n330,kill,a3\n390,add,c0\n"
    faults = ({"node": "a3/1", "step": 8, "point": "backward"},)
    run = train(
        tmp_path, "two", watch, trace, nodes=4, gpus_per_node=2, steps=LONGER, speed=60, faults=faults
    )
    result = run.result
    assert result.state == "done" and (result.samples_lost, result.samples_repeated) == (0, 0)
    assert run.losses == base.losses
    assert result.weights_sha256 == base.result.weights_sha256
    assert processes_of(tmp_path) == []

    assert len(workers) == 8
    assert any(line["pipelines"] * line["stages"] > 4 for line in run.metrics)
    told = [(event["kind"], event["text"]) for event in run.events]
    for node in ("a0", "a1", "a2", "a3", "b0", "b1"):
        assert ("joined", f"{node} joined") in told
    assert ("lost", "a3/1 is gone") in told
    gone = {node for record in result.migrations for node in record.nodes_lost}
    assert {"a0", "a1", "a2", "a3", "b0"} <= gone and not any("/" in node for node in gone)
    assert {record.noticed for record in result.migrations} == {True, False}
    # an instance's workers hold adjacent stages of one pipeline
    layout = seen[0]["layout"]
    held = {node["name"]: [tuple(at) for at in node["positions"]] for node in seen[0]["nodes"]}
    assert sum(map(len, held.values())) == layout["pipelines"] * layout["stages"]
    if layout["stages"] % 2 == 0:
        for positions in held.values():
            assert len({pipeline for pipeline, _ in positions}) <= 1
            assert len({stage for _, stage in positions}) == len(positions)


def test_a_node_whose_worker_never_comes_back_is_replaced(
    undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other GPU's worker lives, but the node could hold no position of its own: another is rented."""
    monkeypatch.setattr(local, "LinkTimes", partial(LinkTimes, lame_s=0.5))
    send, told = Coordinator._send, Counter[str]()

    def send_all_but_one(self: Coordinator, node: str, message: messages.Message) -> None:
        told[node] += isinstance(message, messages.Configure)
        if node != "node2/1" or told[node] < 2:  # the next worker there is alive, and never ready
            send(self, node, message)

    monkeypatch.setattr(Coordinator, "_send", send_all_but_one)
    faults = ({"node": "node2/1", "step": 8, "point": "forward"},)
    run = train(tmp_path, "lame", nodes=3, gpus_per_node=2, steps=STEPS, speed=60, faults=faults)
    assert_equal(run, undisturbed, tmp_path)
    told_of = [event["text"] for event in run.events]
    assert told_of.count("node2 is of no use: ending the instance") == 1
    assert "node4 joined" in told_of and told["node2/1"] == 2


def test_a_node_whose_worker_hangs_before_it_was_ever_ready_is_replaced(
    undisturbed: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says hello and lives, and nothing more comes of it: its instance is ended, and another trains."""
    monkeypatch.setattr(local, "LinkTimes", partial(LinkTimes, unready_s=2.0))
    send = Coordinator._send

    def send_all_but_one(self: Coordinator, node: str, message: messages.Message) -> None:
        if node != "node2" or not isinstance(message, messages.Configure):
            send(self, node, message)

    monkeypatch.setattr(Coordinator, "_send", send_all_but_one)
    run = train(tmp_path, "hung", nodes=2, steps=10, speed=60)
    assert run.result.state == "done", run.result.why
    assert run.losses == undisturbed.losses[:10]
    (told,) = [event for event in run.events if event["text"] == "node2 is of no use: ending the instance"]
    assert told["why"] == "a worker has been there for 2 s without getting ready"
    assert any(event["text"] == "node3 joined" for event in run.events)
