"""Nodes with several GPUs: a worker for each, lost alone or all together, told apart by their names."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from cloud.hosts.inventory import Host
from cloud.types import Instance, InstanceState, OwnSshTarget, Pool
from runtime.control.fleet.fleet import NodeNoticed, WorkerJoined, WorkerLost, WorkerMessage
from runtime.control.messages import Hello
from runtime.control.node.worker_process import WorkerPlan, worker_environment
from runtime.control.providers.hosts import gpus_of
from runtime.control.training.roster import Roster
from runtime.planning.errors import InputError
from tests.control.fleets import local_fleet

HELLO = Hello(1, "127.0.0.1", 1, 2)


def test_every_gpu_has_a_worker_of_its_own(tmp_path: Path) -> None:
    """Messages find the worker that is meant; one that dies is replaced alone; an agent takes all along."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 2, gpus=3) as fleet:
            names = [f"node{node}/{gpu}" for node in (1, 2) for gpu in range(3)]
            assert sorted(await fleet.joined(6)) == names
            hellos = [event for event in fleet.seen if isinstance(event, WorkerJoined)]
            for event in hellos:
                gpu = event.node.rpartition("/")[2]
                assert event.hello["env"]["CUDA_VISIBLE_DEVICES"] == event.hello["env"]["LOCAL_RANK"] == gpu
                assert event.hello["env"]["PARCAE_NODE"] == event.node.rpartition("/")[0]
            for name in names:
                await fleet.echo(name, f"to {name}")
            first = dict(fleet.pids)
            assert len(set(first.values())) == 6

            os.kill(first["node1/1"], signal.SIGKILL)
            await fleet.until(WorkerLost, "node1/1")
            await fleet.until(WorkerJoined, "node1/1")
            await fleet.echo("node1/1", "anew")
            await fleet.echo("node1/0", "still")
            fleet.fleet.kill_worker("node2/2")
            await fleet.until(WorkerLost, "node2/2")
            await fleet.until(WorkerJoined, "node2/2")
            lost = [event.node for event in fleet.seen if isinstance(event, WorkerLost)]
            assert lost == ["node1/1", "node2/2"]
            same = [name for name in names if name not in lost]
            assert [fleet.pids[name] for name in same] == [first[name] for name in same]

            os.kill(fleet.agent_pid("node2"), signal.SIGKILL)
            gone = {(await fleet.until(WorkerLost)).node for _ in range(3)}
            assert gone == {"node2/0", "node2/1", "node2/2"}
            assert set(await fleet.joined(3)) == gone
            await fleet.echo("node2/2", "after the agent")

    asyncio.run(scene())


def test_a_cut_connection_loses_no_worker_and_no_line(tmp_path: Path) -> None:
    """Lines of several workers share the link, which only delays them."""

    async def scene() -> None:
        async with local_fleet(tmp_path, 1, gpus=2) as fleet:
            await fleet.joined(2)
            for gpu in range(2):
                fleet.fleet.send(f"node1/{gpu}", {"t": "many", "count": 50})
            fleet.provider.node("node1").cut()
            numbers: dict[str, list[int]] = {"node1/0": [], "node1/1": []}
            while min(map(len, numbers.values())) < 50:
                event = await fleet.until(WorkerMessage)
                numbers[event.node].append(event.message["number"])
            assert numbers == {"node1/0": list(range(50)), "node1/1": list(range(50))}
            assert not any(isinstance(event, WorkerLost | NodeNoticed) for event in fleet.seen)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("own", "gpu", "seen"),
    [(None, 1, "1"), ("4, 6", 1, "6"), ("GPU-a,GPU-b", 0, "GPU-a"), ("5", 1, "5"), ("", 1, "1")],
)
def test_a_worker_sees_its_gpu_and_none_that_is_forbidden(own: str | None, gpu: int, seen: str) -> None:
    """CUDA_VISIBLE_DEVICES of the node is obeyed; with one GPU it is left as it is."""
    node = {} if own is None else {"CUDA_VISIBLE_DEVICES": own}
    here = Path()
    environment = worker_environment(node, WorkerPlan(here, here, here, "engine", None, gpu, 2))
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["LOCAL_RANK"]) == (seen, str(gpu))
    alone = worker_environment(node, WorkerPlan(here, here, here, "engine", None))
    assert alone.get("CUDA_VISIBLE_DEVICES") == own and "LOCAL_RANK" not in alone


def test_a_node_has_joined_when_its_last_worker_is_ready() -> None:
    """Until then it boots; a notice is for all its workers; what came and went is told by nodes."""
    roster = Roster(2)
    pool = Pool("zone", "kind", 2, 0.0, 0.0)
    roster.instance(Instance("id", "n", "job", "token", pool, InstanceState.RUNNING, 0.0))
    for worker in ("n/0", "n/1"):
        assert roster.booting and not roster.whole(worker)
        roster.join(worker, HELLO)
        roster.make_ready(worker)
    assert roster.whole("n/0") and not roster.booting
    roster.notice("n", 100.0)
    assert roster.due(95.0, 10.0) == ["n/0", "n/1"]
    assert roster.spared(101.0) == ["n/0", "n/1"]
    for worker in ("n/0", "n/1"):
        assert roster.lose(worker) and not roster.whole("n/0")
    assert roster.changes() == (("n",), ("n",))
    assert roster.changes() == ((), ())


def test_hosts_say_how_many_gpus_they_have() -> None:
    """All alike: that many; unlike ones, or more than there are, ask for a decision."""

    def hosts(*gpus: int | None) -> list[Host]:
        return [Host(f"h{index}", OwnSshTarget("h"), gpus=count) for index, count in enumerate(gpus)]

    assert gpus_of(hosts(None, None), None) == 1
    assert gpus_of(hosts(4, 4), None) == 4
    assert gpus_of(hosts(4, 8, None), 4) == 4
    with pytest.raises(InputError, match=r"h1 has 2.*--gpus-per-node 2"):
        gpus_of(hosts(4, 2), None)
    with pytest.raises(InputError, match="--gpus-per-node 3: host h1 has 2"):
        gpus_of(hosts(4, 2), 3)
