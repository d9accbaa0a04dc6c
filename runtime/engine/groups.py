"""Communication of one generation: a group for the own pipeline and one for the own stage, nothing global.

The groups are made directly on a store, so a process outlives any number of generations and the next one's
groups are built beside those in use. Gloo serves CPUs; on GPUs the same interface is kept by NCCL.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # no __all__ there

# What is left behind after an abort waits this long before it fails and frees its thread.
GROUP_TIMEOUT = timedelta(seconds=20)
_GRADIENT_TAG = 1 << 20
_TIE_TAG = 1 << 21
_COPY_TAG = 1 << 22


class Groups(Protocol):
    """What a step needs from the network. Each call returns a Work to be waited for by a Waiter."""

    def send_activation(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        """To the next stage of the own pipeline."""

    def receive_activation(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        """From the previous stage."""

    def send_gradient(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        """To the previous stage."""

    def receive_gradient(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        """From the next stage."""

    def reduce(self, tensor: torch.Tensor, part: int = 0) -> Any | None:
        """Sum over the replicas of the own stage, the first or `part`-th; None when there is only one."""

    def exchange_ends(self, outgoing: torch.Tensor, incoming: torch.Tensor) -> Sequence[Any]:
        """Between the first and the last stage of the own pipeline: each gets what the other sends.

        The Work of the receive comes first; that of the send need not be waited for.
        """

    def abort(self) -> None:
        """A member is gone: give up what can be given up."""


def store_client(store: tuple[str, int]) -> Any:
    """A connection to a rendezvous store.

    Each generation has one of its own: an abandoned wait would hold the lock of a shared one.
    """
    return TCPStore(store[0], store[1], is_master=False, timeout=GROUP_TIMEOUT)


class StoreServer:
    """A rendezvous store that this worker offers to a generation, on `host` alone."""

    def __init__(self, host: str) -> None:
        listener = socket.create_server((host, 0), backlog=128)
        self.port = int(listener.getsockname()[1])
        # The listening socket is made here because the store by itself would listen on every interface.
        self._store = TCPStore(
            host,
            self.port,
            is_master=True,
            wait_for_workers=False,
            timeout=GROUP_TIMEOUT,
            master_listen_fd=listener.detach(),
        )


def gloo_group(store: Any, rank: int, size: int, host: str, timeout: timedelta) -> Any:
    """A group of its own on a store; `host` is where this member listens. Blocks until all are there."""
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = timeout
    return dist.ProcessGroupGloo(store, rank, size, options)


class GlooGroups:
    """Groups over gloo."""

    def __init__(
        self,
        generation: int,
        host: str,
        store: tuple[str, int],
        pipelines: int,
        stages: int,
        position: tuple[int, int],
        works: Sequence[int] = (),
    ) -> None:
        """Joins the generation's groups; blocks until every member has.

        `stages` and `position` count workers of the own pipeline, `works` are the model's stages of this one.

        Raises:
            RuntimeError: a member did not come within the timeout.
        """
        pipeline, self._stage = position
        self._other_end = stages - 1 if self._stage == 0 else 0
        client = store_client(store)

        def group(name: str, rank: int, size: int) -> Any | None:
            if size == 1:
                return None
            return gloo_group(PrefixStore(f"{generation}/{name}", client), rank, size, host, GROUP_TIMEOUT)

        self._pipeline = group(f"pipeline{pipeline}", self._stage, stages)
        self._replicas = [group(f"stage{stage}", pipeline, pipelines) for stage in works or (self._stage,)]

    def send_copy(self, tensor: torch.Tensor, stage: int, rank: int) -> Any:
        """The summed gradient of a stage, to the worker of the own pipeline that keeps a copy of it."""
        assert self._pipeline is not None
        return self._pipeline.send([tensor], rank, _COPY_TAG + stage)

    def receive_copy(self, tensor: torch.Tensor, stage: int, rank: int) -> Any:
        """From the worker that works the stage."""
        assert self._pipeline is not None
        return self._pipeline.recv([tensor], rank, _COPY_TAG + stage)

    def send_activation(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        assert self._pipeline is not None
        return self._pipeline.send([tensor], self._stage + 1, micro_batch)

    def receive_activation(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        assert self._pipeline is not None
        return self._pipeline.recv([tensor], self._stage - 1, micro_batch)

    def send_gradient(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        assert self._pipeline is not None
        return self._pipeline.send([tensor], self._stage - 1, _GRADIENT_TAG + micro_batch)

    def receive_gradient(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        assert self._pipeline is not None
        return self._pipeline.recv([tensor], self._stage + 1, _GRADIENT_TAG + micro_batch)

    def reduce(self, tensor: torch.Tensor, part: int = 0) -> Any | None:
        replicas = self._replicas[part]
        if replicas is None:
            return None
        options = dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.SUM  # type: ignore[assignment]
        return replicas.allreduce([tensor], options)

    def exchange_ends(self, outgoing: torch.Tensor, incoming: torch.Tensor) -> Sequence[Any]:
        assert self._pipeline is not None
        received = self._pipeline.recv([incoming], self._other_end, _TIE_TAG)
        return received, self._pipeline.send([outgoing], self._other_end, _TIE_TAG)

    def abort(self) -> None:
        pass  # gloo cannot: who waits is left to the timeout
