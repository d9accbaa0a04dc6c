"""One forward, one backward (PipeDream-flush): the order in which a stage works through its micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from runtime.engine.groups import Groups
from runtime.engine.waits import Waiter


class PipelineStep:
    """One step of one stage: forward and backward of every micro-batch, gradients left in the layers.

    Sends are never waited for: the tensors are kept here until the step is committed, which proves that
    everything arrived.
    """

    def __init__(
        self,
        groups: Groups,
        waiter: Waiter,
        layers: Sequence[Callable[[torch.Tensor], torch.Tensor]],
        stage: int,
        stages: int,
        activation_shape: tuple[int, ...],
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        point: Callable[[str], None],
        device: torch.device,
    ) -> None:
        self._groups, self._waiter, self._layers = groups, waiter, layers
        self._first, self._last = stage == 0, stage == stages - 1
        self._ahead = stages - stage
        self._shape = activation_shape
        self._loss = loss
        self._point = point
        self._device = device
        self._in_flight: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._sent: list[tuple[torch.Tensor, Any]] = []
        self.losses: list[tuple[int, float]] = []

    def run(
        self, micro_batches: Sequence[int], data: Sequence[tuple[torch.Tensor, torch.Tensor]], weight: float
    ) -> None:
        """Work through `micro_batches`; `data` are (inputs, targets) of each, used by the end stages only.

        `weight` is the share of one micro-batch in the mini-batch's loss.

        Raises:
            AbandonedError: the generation was aborted.
            RuntimeError: the network failed.
        """
        warm_up = min(len(micro_batches), self._ahead)
        for index in range(warm_up):
            self._forward(micro_batches[index], data[index])
        for index in range(len(micro_batches)):
            self._backward(micro_batches[index], weight)
            if warm_up + index < len(micro_batches):
                self._forward(micro_batches[warm_up + index], data[warm_up + index])

    def _forward(self, micro_batch: int, data: tuple[torch.Tensor, torch.Tensor]) -> None:
        self._waiter.check()
        if self._first:
            received = data[0]
        else:
            received = torch.empty(self._shape, device=self._device)
            self._waiter.wait(self._groups.receive_activation(received, micro_batch))
            received.requires_grad_()
        out = received
        for layer in self._layers:
            out = layer(out)
        if self._last:
            out = self._loss(out, data[1])
            self.losses.append((micro_batch, float(out.detach())))
        else:
            activation = out.detach()
            self._sent.append((activation, self._groups.send_activation(activation, micro_batch)))
        self._in_flight.append((received, out))
        self._point("forward")

    def _backward(self, micro_batch: int, weight: float) -> None:
        self._waiter.check()
        received, out = self._in_flight.pop(0)
        if self._last:
            (out * weight).backward()  # type: ignore[no-untyped-call]
        else:
            gradient = torch.empty(self._shape, device=self._device)
            self._waiter.wait(self._groups.receive_gradient(gradient, micro_batch))
            # Its derivative is `gradient`, bit for bit. `out.backward(gradient)` would do the same, but the
            # first call in a process imports sympy: 0.7 s in the first step of every node that joins.
            torch.dot(out.reshape(-1), gradient.reshape(-1)).backward()  # type: ignore[no-untyped-call]
        if not self._first:
            assert received.grad is not None
            self._sent.append((received.grad, self._groups.send_gradient(received.grad, micro_batch)))
        self._point("backward")
