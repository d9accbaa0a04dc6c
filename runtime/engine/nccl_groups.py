"""Groups over NCCL, for GPUs. Written from its documentation and not yet run on one (see README, Limits).

Each direction of the pipeline has a communicator of its own: on a single one, the unbatched sends and
receives of 1F1B would wait for each other. A Work's own wait only orders streams, so ours waits for the
device, in the generation's thread. `abort` frees a communicator whose peer has died; nothing of it is used
again. A communicator is not shrunk but built anew, beside the old one: the members that stay change places.

torch's own watchdog would end the whole process when a call fails or takes too long, which here is an
ordinary death of a peer: `worker_process` switches that off in a worker's environment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from runtime.engine.groups import GROUP_TIMEOUT, store_client
from runtime.engine.waits import DeviceWork


class NcclGroups:
    """The same interface as `GlooGroups`, on one CUDA device."""

    def __init__(
        self,
        generation: int,
        device: torch.device,
        store: tuple[str, int],
        pipelines: int,
        stages: int,
        position: tuple[int, int],
    ) -> None:
        """Joins the generation's groups; blocks until every member has.

        Raises:
            RuntimeError: a member did not come within the timeout, or there is no GPU, or no NCCL.
        """
        if not torch.cuda.is_available():
            raise RuntimeError("no CUDA device here: NCCL has nothing to run on")
        if not dist.is_nccl_available():
            raise RuntimeError("this build of torch has no NCCL: install one for CUDA")
        pipeline, self._stage = position
        self._stages = stages
        self._device = device
        torch.cuda.set_device(device)
        client = store_client(store)

        def group(name: str, rank: int, size: int) -> Any | None:
            if size == 1:
                return None
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = GROUP_TIMEOUT
            # So that a member that dies while the communicator is made does not hold up the others for ever.
            options.config.blocking = 0
            prefixed = PrefixStore(f"{generation}/{name}", client)
            made: Any = dist.ProcessGroupNCCL(prefixed, rank, size, options)
            # Communicators are made at their first use; that must not fall into a step, and nobody aborts
            # groups that are still being built.
            made.eager_connect_single_device(device)
            first_use = DeviceWork(made.allreduce([torch.zeros(1, device=device)]), device)
            if not first_use.done_within(GROUP_TIMEOUT.total_seconds()):
                made.abort()
                raise RuntimeError(f"NCCL group {name}: a member did not come in time")
            return made

        self._down = group(f"pipeline{pipeline}/down", self._stage, stages)
        self._up = group(f"pipeline{pipeline}/up", self._stage, stages)
        self._replicas = group(f"stage{self._stage}", pipeline, pipelines)

    def send_activation(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        return self._work(self._down, lambda group: group.send([tensor], self._stage + 1, 0))

    def receive_activation(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        return self._work(self._down, lambda group: group.recv([tensor], self._stage - 1, 0))

    def send_gradient(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        return self._work(self._up, lambda group: group.send([tensor], self._stage - 1, 0))

    def receive_gradient(self, tensor: torch.Tensor, micro_batch: int) -> Any:
        return self._work(self._up, lambda group: group.recv([tensor], self._stage + 1, 0))

    def reduce(self, tensor: torch.Tensor, part: int = 0) -> Any | None:
        if self._replicas is None:
            return None
        return self._work(self._replicas, lambda group: group.allreduce([tensor]))

    def exchange_ends(self, outgoing: torch.Tensor, incoming: torch.Tensor) -> Sequence[Any]:
        # One message each way, each on the communicator of its own direction: neither can block the other.
        first, last = 0, self._stages - 1
        here, there = (first, last) if self._stage == first else (last, first)
        inward, outward = (self._up, self._down) if here == first else (self._down, self._up)
        sent = self._work(outward, lambda group: group.send([outgoing], there, 0))
        return self._work(inward, lambda group: group.recv([incoming], there, 0)), sent

    def abort(self) -> None:
        """Free the communicators though a peer is gone; calls that wait in them fail.

        Returns at once: it may take a while, and who calls us has to answer its agent.
        """
        threading.Thread(target=self._abort, name="nccl-abort", daemon=True).start()

    def _abort(self) -> None:
        for group in (self._down, self._up, self._replicas):
            if group is not None:
                group.abort()

    def _work(self, group: Any | None, start: Callable[[Any], Any]) -> DeviceWork:
        assert group is not None
        return DeviceWork(start(group), self._device)
