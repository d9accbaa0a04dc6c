"""NCCL's groups as far as they go without a GPU: their interface, what they ask torch for, their errors."""

from __future__ import annotations

import inspect
import threading
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist

from runtime.control.node.worker_process import WorkerPlan, worker_environment
from runtime.engine import nccl_groups
from runtime.engine.groups import GROUP_TIMEOUT, GlooGroups, Groups
from runtime.engine.nccl_groups import NcclGroups

METHODS = [name for name in vars(Groups) if not name.startswith("_")]


@pytest.mark.parametrize("name", METHODS)
def test_both_kinds_of_groups_take_the_same_calls(name: str) -> None:
    """Whoever trains need not know which of them it has."""
    wanted = inspect.signature(getattr(Groups, name)).parameters
    assert len(METHODS) == 7
    for kind in (GlooGroups, NcclGroups):
        assert list(inspect.signature(getattr(kind, name)).parameters) == list(wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_error_says_so() -> None:
    """One line, before anything is connected to."""
    with pytest.raises(RuntimeError, match="no CUDA device here"):
        NcclGroups(1, torch.device("cuda", 0), ("127.0.0.1", 1), 1, 2, (0, 0))


class Recorded:
    """A communicator that only remembers: its arguments are those of torch's type stubs."""

    made: ClassVar[list[Recorded]] = []
    answers = True
    Options = lambda: SimpleNamespace(config=SimpleNamespace(blocking=1))  # noqa: E731

    def __init__(self, store: Any, rank: int, size: int, options: Any) -> None:
        self.place, self.options = (rank, size), options
        self.calls: list[tuple[Any, ...]] = []
        self.aborted = threading.Event()
        Recorded.made.append(self)

    def eager_connect_single_device(self, device: torch.device) -> None:
        self.calls.append(("connect", device))

    def send(self, tensors: list[torch.Tensor], to: int, tag: int) -> None:
        self.calls.append(("send", to, tag))

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int) -> None:
        self.calls.append(("recv", source, tag))

    def allreduce(self, tensors: list[torch.Tensor]) -> bool:
        self.calls.append(("allreduce", len(tensors)))
        return self.answers

    def abort(self) -> None:
        self.aborted.set()


class RecordedWork:
    """What `Recorded.allreduce` has begun."""

    def __init__(self, answers: bool, device: torch.device) -> None:
        self._answers = answers

    def done_within(self, timeout_s: float) -> bool:
        return self._answers


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    """A torch with a GPU and NCCL, as far as groups are concerned."""
    Recorded.made.clear()
    monkeypatch.setattr(Recorded, "answers", True)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda size, device: zeros(size))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(dist, "ProcessGroupNCCL", Recorded, raising=False)
    monkeypatch.setattr(nccl_groups, "store_client", lambda store: dist.HashStore())
    monkeypatch.setattr(nccl_groups, "DeviceWork", RecordedWork)
    return Recorded


def test_each_direction_has_a_communicator_and_an_abort_reaches_all(recorded: type[Recorded]) -> None:
    """Stage 1 of 3, replica 0 of 2: what goes down and what comes up never wait for each other."""
    device = torch.device("cuda", 0)
    groups = NcclGroups(7, device, ("127.0.0.1", 1), 2, 3, (0, 1))
    down, up, replicas = recorded.made
    assert [group.place for group in recorded.made] == [(1, 3), (1, 3), (0, 2)]
    for group in recorded.made:
        assert group.options._timeout == GROUP_TIMEOUT
        assert group.options.config.blocking == 0
        assert group.calls == [("connect", device), ("allreduce", 1)]
    empty = torch.empty(0)
    groups.send_activation(empty, 5)
    groups.receive_activation(empty, 5)
    groups.send_gradient(empty, 5)
    groups.receive_gradient(empty, 5)
    assert down.calls[2:] == [("send", 2, 0), ("recv", 0, 0)]
    assert up.calls[2:] == [("send", 0, 0), ("recv", 2, 0)]
    groups.abort()
    assert all(group.aborted.wait(5.0) for group in (down, up, replicas))


def test_a_member_that_does_not_come_is_not_waited_for(
    recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been made of the communicator is given back, and the error says which group it was."""
    monkeypatch.setattr(recorded, "answers", False)
    with pytest.raises(RuntimeError, match="pipeline0/down: a member did not come"):
        NcclGroups(7, torch.device("cuda", 0), ("127.0.0.1", 1), 1, 2, (0, 0))
    assert recorded.made[0].aborted.is_set()


def test_the_watchdog_of_nccl_is_told_to_leave_a_worker_alone(tmp_path: Any) -> None:
    """By default it ends the process when a peer dies; who sets it otherwise is heard."""
    plan = WorkerPlan(tmp_path, tmp_path, tmp_path, "engine", None)
    assert worker_environment({}, plan)["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    told = worker_environment({"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}, plan)
    assert told["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "1"
