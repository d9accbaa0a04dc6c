"""Every policy ends with the weights of an undisturbed run; what it lost on the way is in its result."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cloud.local.provider import LocalProvider
from tests.end_to_end.harness import STEPS, Finished, processes_of, train

pytestmark = pytest.mark.timeout(120)

# six nodes; one is killed without a warning, one comes, one is taken after a notice, one more is killed
TRACE = "".join(f"0,add,n{k}\n" for k in range(6)) + "60,kill,n1\n110,add,n6\n200,remove,n2\n260,kill,n3\n"
# one pipeline of four: a neighbour works for n1 until n6 comes, and the second node for the first
THIN = "".join(f"0,add,n{k}\n" for k in range(4)) + "60,kill,n1\n150,add,n6\n210,kill,n0\n270,remove,n3\n"


@pytest.mark.parametrize("policy", ["reactive", "checkpoint", "redundancy"])
def test_a_policy_trains_every_step_once_in_the_weights(
    undisturbed: Finished, tmp_path: Path, policy: str
) -> None:
    """Kills, a join and a notice: equal losses and weights, an exact ledger, redone steps counted."""
    trace = THIN if policy == "redundancy" else TRACE
    options = {"nodes": 6, "steps": STEPS, "speed": 60, "policy": policy, "checkpoint_every": 0}
    run = train(tmp_path, policy, trace=trace, **options)
    result = run.result
    assert result.state == "done"
    assert run.losses == undisturbed.losses
    assert result.weights_sha256 == undisturbed.result.weights_sha256
    assert (result.samples_lost, result.samples_repeated) == (0, 0)
    assert [line["step"] for line in run.metrics] == list(range(STEPS))
    assert processes_of(tmp_path) == []
    lost = [node for record in result.migrations for node in record.nodes_lost]
    assert "n1" in lost and len(lost) == len(set(lost))
    assert result.time_lost_s > 0
    said = [event["text"] for event in run.events if event["kind"] == "rollback"]
    redone = sum(int(text.split(", ")[1].split()[0]) for text in said)
    assert result.steps_redone == redone
    if policy == "checkpoint":
        assert run.kinds == {"rollback"}
    if policy == "redundancy":
        assert {str(record.after) for record in result.migrations} == {"1x4"}
        assert [m.transfer.bytes_moved for m in result.migrations if "n1" in m.nodes_lost] == [0]
        assert any("worked by neighbours" in event["why"] for event in run.events)


def test_without_a_checkpoint_on_the_disk_the_first_step_comes_again(
    undisturbed: Finished, tmp_path: Path
) -> None:
    """Back to the seed after a death before the first checkpoint, and to the disk after a later one."""
    faults = ({"node": "node1", "step": 4, "point": "reduce"},)
    killed: list[int] = []

    def kill(step: int, provider: LocalProvider) -> None:
        if step == 14 and not killed:
            workers = [r.pid for r in provider.node("node2").register.records() if r.role == "worker"]
            killed.append(workers[-1])
            os.kill(killed[0], signal.SIGKILL)

    options = {"policy": "checkpoint", "checkpoint_every": 8}
    run = train(tmp_path, "early", kill, nodes=4, steps=STEPS, faults=faults, **options)
    assert run.losses == undisturbed.losses
    assert run.result.weights_sha256 == undisturbed.result.weights_sha256
    back = [int(event["text"].split()[3].strip(",")) for event in run.events if event["kind"] == "rollback"]
    assert len(back) == 2 and back[0] == 0 and back[1] in (8, 9)
    assert run.result.steps_redone >= 4 + 5
