"""A job on the local cloud survives whatever happens to its nodes, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cloud.local.provider import LocalProvider
from runtime.control.job.launch import resume
from runtime.control.job.recorder import Recorder
from tests.end_to_end.harness import LONG_STEPS, STEPS, Finished, assert_equal, lines, processes_of, train
from tests.end_to_end.storm import is_backup

pytestmark = pytest.mark.timeout(150)


def pid_of(provider: LocalProvider, node: str, role: str) -> int:
    """The last process of this role on a node."""
    return [record.pid for record in provider.node(node).register.records() if record.role == role][-1]


def test_a_job_survives_a_hard_trace(undisturbed_long: Finished, tmp_path: Path) -> None:
    """A trace that takes fourteen nodes, with and without notice, and gives nine: all kinds of migration."""
    trace = "".join(f"0,add,a{k}\n" for k in range(8))
    trace += (
        "120,remove,a0\n180,kill,a1\n240,remove,a2\n300,add,b0\n300,add,b1\n330,kill,a3\n390,add,b2\n"
        # the rest of the first eight vanish at once: no stage has a holder left
        "480,kill,a4\n480,kill,a5\n480,kill,a6\n480,kill,a7\n480,kill,b0\n510,add,c0\n"
        "570,add,c1\n570,add,c2\n630,remove,b1\n690,add,c3\n690,add,c4\n690,add,c5\n750,remove,c0\n"
        "780,kill,c1\n840,remove,c2\n900,add,d0\n"
    )
    run = train(tmp_path, "hard", trace=trace, nodes=8, steps=LONG_STEPS, speed=60)
    assert_equal(run, undisturbed_long, tmp_path)
    assert run.kinds == {"intra_stage", "inter_stage", "pipeline", "rollback"}
    lost = {node for record in run.result.migrations for node in record.nodes_lost}
    joined = {node for record in run.result.migrations for node in record.nodes_joined}
    assert len(lost) >= 10
    assert len(joined) >= 8
    noticed = {record.noticed for record in run.result.migrations}
    assert noticed == {True, False}


def test_a_worker_that_always_fails_is_given_up(undisturbed: Finished, tmp_path: Path) -> None:
    """Over a step, or before it is ever ready: after three attempts another node is rented in its place."""
    faults = (
        {"node": "node2", "step": 10, "point": "forward", "fails": True},
        {"node": "node3", "point": "start", "fails": True},
        {"node": "node4", "point": "start"},
    )
    run = train(tmp_path, "broken", nodes=4, steps=STEPS, faults=faults)
    assert_equal(run, undisturbed, tmp_path)
    told = [(event["kind"], event["text"]) for event in run.events]
    assert told.count(("failed", "node2 could not go on")) == 3
    assert told.count(("trouble", "node3 has not started")) == 3
    assert told.count(("trouble", "node4 has not started")) == 1
    for node in ("node2", "node3"):
        assert told.count(("trouble", f"{node} is of no use: ending the instance")) == 1
    assert told.count(("lost", "node2 is gone")) == 1 and ("lost", "node1 is gone") not in told
    assert {("joined", "node5 joined"), ("joined", "node6 joined")} <= set(told)


@pytest.mark.parametrize("point", ["start", "forward"])
def test_a_job_whose_every_worker_dies_is_ended(tmp_path: Path, point: str) -> None:
    """Before it is ready, or over a step: nodes are replaced, but not for ever."""
    faults = tuple({"node": f"node{k}", "point": point, "always": True} for k in range(1, 9))
    run = train(tmp_path, "deadly", nodes=2, steps=STEPS, faults=faults)
    assert run.result.state == "failed" and run.result.steps == 0
    assert "the process has ended" in run.result.why
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("policy", ["parcae", "checkpoint"])
def test_a_job_whose_every_worker_fails_is_ended(tmp_path: Path, policy: str) -> None:
    """In the worker's own words, instead of being tried again for ever."""
    faults = tuple({"node": f"node{k}", "step": 3, "point": "forward", "fails": True} for k in (1, 2, 3))
    trace = "".join(f"0,add,node{k}\n" for k in (1, 2, 3))  # the third is there to replace one of the others
    run = train(tmp_path, "hopeless", nodes=2, steps=STEPS, trace=trace, faults=faults, policy=policy)
    assert run.result.state == "failed" and run.result.steps <= 3
    assert "fails at step 3" in run.result.why
    assert run.result.why.endswith("RuntimeError: a scripted failure at: forward")
    assert processes_of(tmp_path) == []


def test_a_killed_agent_costs_its_node_only(undisturbed: Finished, tmp_path: Path) -> None:
    """The agent's worker ends by itself, the survivors go on, agent and worker come back."""
    killed: list[int] = []

    def kill_agent(step: int, provider: LocalProvider) -> None:
        if step == 12:
            killed.append(pid_of(provider, "node2", "agent"))
            os.kill(killed[-1], signal.SIGKILL)

    run = train(tmp_path, "agent", kill_agent, nodes=4, steps=STEPS)
    assert killed
    assert_equal(run, undisturbed, tmp_path)
    assert sum(event["text"] == "node2 joined" for event in run.events) == 2


def test_a_cut_connection_costs_nothing(undisturbed: Finished, tmp_path: Path) -> None:
    """The SSH connection of a node breaks twice in mid-step: it is made again and no worker is lost."""

    def cut(step: int, provider: LocalProvider) -> None:
        if step in (10, 20):
            provider.node("node3").cut()

    run = train(tmp_path, "cut", cut, nodes=4, steps=STEPS)
    assert_equal(run, undisturbed, tmp_path)
    assert not any(event["kind"] == "lost" for event in run.events)


def test_a_stopped_worker_is_replaced(undisturbed: Finished, tmp_path: Path) -> None:
    """A worker that hangs without dying is found by its silence, ended and started again."""

    def stop(step: int, provider: LocalProvider) -> None:
        if step == 12:
            os.kill(pid_of(provider, "node1", "worker"), signal.SIGSTOP)

    run = train(tmp_path, "stopped", stop, nodes=4, steps=STEPS)
    assert_equal(run, undisturbed, tmp_path)


def test_who_joins_takes_the_place_of_whoever_will_go(undisturbed: Finished, tmp_path: Path) -> None:
    """Four nodes would be 2x2, but one of them has a notice: there is one change, and 1x3 stays 1x3."""

    def replace(step: int, provider: LocalProvider) -> None:
        if step == 5:
            provider.announce("n1", 20.0)
            provider.appear("n4")
        joined = any(event["text"] == "n4 joined" for event in lines(tmp_path / "jobs/place/events.jsonl"))
        if step > 5 and not joined:
            time.sleep(0.05)  # a node boots meanwhile: the job must not be over before it is ready

    trace = "0,add,n1\n0,add,n2\n0,add,n3\n"
    run = train(tmp_path, "place", replace, trace=trace, nodes=4, steps=STEPS, policy="reactive")
    assert_equal(run, undisturbed, tmp_path)
    layouts = [str(record.after) for record in run.result.migrations]
    assert layouts == ["1x3"]


def test_too_few_nodes_are_waited_out(undisturbed: Finished, tmp_path: Path) -> None:
    """One node cannot hold the model: the job waits, says so, and goes on when another comes."""
    replaced = {10: ("n1", "n3"), 30: ("n2", "n4")}

    def replace(step: int, provider: LocalProvider) -> None:
        gone, come = replaced.get(step, ("", ""))
        if gone in provider.names():
            provider.kill(gone)
            provider.appear(come)

    run = train(tmp_path, "few", replace, trace="0,add,n1\n0,add,n2\n", nodes=2, steps=STEPS)
    assert_equal(run, undisturbed, tmp_path)
    waits = [event for event in run.events if event["kind"] == "waiting"]
    assert len(waits) == 2
    assert all("needs at least 2 nodes (1x2), 1 here" in wait["why"] for wait in waits)


def test_the_backup_is_replaced_while_training_goes_on(undisturbed: Finished, tmp_path: Path) -> None:
    """Its process is killed; once another has the state every node is: it has followed every step since."""
    killed: list[int] = []
    events = tmp_path / "jobs" / "anchor" / "events.jsonl"
    struck_at = 0

    def interfere(step: int, provider: LocalProvider) -> None:
        nonlocal struck_at
        if step == 12 and not killed:
            killed.extend(pid for pid in processes_of(tmp_path) if is_backup(pid))
            os.kill(killed[0], signal.SIGKILL)
        elif killed and not struck_at:
            if not any(event["text"].startswith("a new backup has") for event in lines(events)):
                time.sleep(0.1)  # a process starts meanwhile: the job must not be over before it has
                return
            struck_at = step
            for name in provider.names():
                provider.kill(name)
            for name in ("new1", "new2"):
                provider.appear(name)

    trace = "0,add,old1\n0,add,old2\n"
    run = train(tmp_path, "anchor", interfere, trace=trace, nodes=2, steps=STEPS, backup="gradients")
    assert len(killed) == 1
    assert 12 < struck_at < STEPS
    assert_equal(run, undisturbed, tmp_path)
    rollback = next(event["text"] for event in run.events if event["kind"] == "rollback")
    back_to = int(rollback.removeprefix("back to step ").partition(",")[0])
    assert struck_at - back_to in (0, 1)
    assert run.result.backup["restarts"] == 1
    assert 0 < run.result.backup["share_of_step_time"] < 1


def test_a_checkpoint_is_continued_at_another_layout(undisturbed: Finished, tmp_path: Path) -> None:
    """Half the steps on six nodes, the rest from the checkpoint on three: as if trained in one go."""
    safe = tmp_path / "safe"
    first = train(tmp_path, "first", nodes=6, steps=STEPS // 2, checkpoint=str(safe), checkpoint_every=10)
    assert sorted(path.name for path in safe.iterdir()) == [f"step-{s}" for s in (10, 20, STEPS // 2)]
    rest = train(tmp_path, "rest", nodes=3, steps=STEPS, start_from=str(safe))
    assert first.losses + rest.losses == undisturbed.losses
    assert rest.result.weights_sha256 == undisturbed.result.weights_sha256
    assert [line["step"] for line in rest.metrics] == list(range(STEPS // 2, STEPS))


def test_a_budget_that_ends_leaves_the_last_state_on_disk(tmp_path: Path) -> None:
    """The step in flight becomes the last, its state is kept, and with more money the job goes on to its end.

    The weights are then those of a job that had the money from the start.
    """
    kept = tmp_path / "kept"
    options: dict[str, Any] = {"nodes": 2, "steps": 30}
    rich = train(tmp_path, "rich", **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "budget_spent", lambda self, _: "no money" if len(self._losses) >= 13 else "")
        poor = train(tmp_path, "poor", checkpoint=str(kept), checkpoint_every=1000, **options)
    assert (poor.result.state, poor.result.why) == ("failed", "no money")
    assert 13 <= poor.result.steps <= 15
    assert (kept / f"step-{poor.result.steps}").is_dir()
    assert resume(tmp_path, "poor", budget_usd=100.0).weights_sha256 == rich.result.weights_sha256
    rows = lines(tmp_path / "jobs/poor/metrics.jsonl")
    assert [row["loss"] for row in rows] == rich.losses
