"""One forward, one backward (PipeDream-flush): the order in which a stage works through its micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from runtime.engine.groups import Groups
from runtime.engine.waits import Waiter

# Messages about held-out micro-batch k bear this number plus k.
_HELD_OUT = 1 << 19


class PipelineStep:
    """One step of one stage: forward and backward of every micro-batch, gradients left in the layers.

    Sends are never waited for: the tensors are kept here until the step is committed, which proves that
    everything arrived.
    """

    def __init__(
        self,
        groups: Groups,
        waiter: Waiter,
        layers: Sequence[Callable[[torch.Tensor, int | None], torch.Tensor]],
        stage: int,
        stages: int,
        activation_shape: tuple[int, ...],
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        point: Callable[[str], None],
        device: torch.device,
        shadow: Sequence[Callable[[torch.Tensor, int | None], torch.Tensor]] = (),
    ) -> None:
        """A layer is called with its input and the number of the micro-batch, None when evaluating.

        `shadow` are the layers of the next stage (the last worker's: of the first), of which this one keeps a
        copy: their forward pass is done here too, as redundant computation does it.
        """
        self._shadow = shadow
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
        self.held_out_losses: list[tuple[int, float]] = []

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

    def evaluate(
        self, micro_batches: Sequence[int], data: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """The losses of held-out `micro_batches`, forward only, into `held_out_losses`.

        A stage runs ahead of the next by no more micro-batches than in training.

        Raises:
            AbandonedError: the generation was aborted.
            RuntimeError: the network failed.
        """
        with torch.no_grad():
            for index, micro_batch in enumerate(micro_batches):
                if index >= self._ahead and not self._last:
                    self._waiter.wait(self._sent[index - self._ahead][1])
                out = self._through(self._input(_HELD_OUT + micro_batch, data[index][0]), None)
                if self._last:
                    self.held_out_losses.append((micro_batch, float(self._loss(out, data[index][1]))))
                else:
                    self._send(out, _HELD_OUT + micro_batch)
                self._point("evaluate")

    def _forward(self, micro_batch: int, data: tuple[torch.Tensor, torch.Tensor]) -> None:
        received = self._input(micro_batch, data[0])
        if not self._first:
            received.requires_grad_()
        out = self._through(received, micro_batch)
        if self._shadow:
            with torch.no_grad():
                redundant = data[0] if self._last else out.detach()
                for layer in self._shadow:
                    redundant = layer(redundant, micro_batch)
        if self._last:
            out = self._loss(out, data[1])
            self.losses.append((micro_batch, float(out.detach())))
        else:
            self._send(out.detach(), micro_batch)
        self._in_flight.append((received, out))
        self._point("forward")

    def _input(self, number: int, tokens: torch.Tensor) -> torch.Tensor:
        self._waiter.check()
        if self._first:
            return tokens
        received = torch.empty(self._shape, device=self._device)
        self._waiter.wait(self._groups.receive_activation(received, number))
        return received

    def _through(self, out: torch.Tensor, micro_batch: int | None) -> torch.Tensor:
        for layer in self._layers:
            out = layer(out, micro_batch)
        return out

    def _send(self, activation: torch.Tensor, number: int) -> None:
        self._sent.append((activation, self._groups.send_activation(activation, number)))

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
