"""The state of a layer: one flat [3, N] fp32 buffer (weights, first and second moment), and its gradient.

The module's parameters are views into row 0, so a migration moves one contiguous block, straight into place.

Exact mode makes the sum of gradients independent of the layout. Each micro-batch's gradient is rounded to a
multiple of 2^-42 and summed in float64. Multiples of 2^-42 below 2^11 have at most 53 significant bits, so
every partial sum is exact and any order of summation gives the same bits; the result is rounded to fp32 once.
Fast mode sums in fp32, in an order that depends on the layout.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from runtime.control.backup import adamw
from runtime.control.wire import AdamW

# Adding and subtracting 1.5 * 2^(52-42) in float64 rounds to a multiple of 2^-42 for |x| < 2^9.
_GRID = 1.5 * 2.0 ** (52 - 42)
ROWS = 3


class LayerState:
    """One layer of the model with its optimiser state, zero until it is initialised or received.

    `module` comes from the meta device; its parameters become views of `buffer`, [3, N] fp32. `gradient` is a
    slice of the generation's flat gradient, set by `bind`. The tensor called `tied` is held by another layer
    too: `tied` is its part of the flat state, None where there is none.
    """

    def __init__(
        self, index: int, module: nn.Module, exact: bool, device: torch.device, tied: str | None = None
    ) -> None:
        self.index = index
        self.tied: slice | None = None
        self.module = module
        self._exact = exact
        named = [
            (owner, f"{prefix}.{name}" if prefix else name, p)
            for prefix, owner in module.named_modules()
            for name, p in owner._parameters.items()
            if p is not None
        ]
        self.size = sum(parameter.numel() for _, _, parameter in named)
        self.buffer = torch.zeros(ROWS, self.size, device=device)
        self.gradient = torch.empty(0)
        self._staged: torch.Tensor | None = None
        start = 0
        for owner, name, meta in named:
            end = start + meta.numel()
            parameter = nn.Parameter(self.buffer[0, start:end].view(meta.shape))
            hook = self._accumulator(start, end)
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            setattr(owner, name.rpartition(".")[2], parameter)
            if name == tied:
                self.tied = slice(start, end)
            start = end
        bounds = [0, self.size] if self.tied is None else [0, self.tied.start, self.tied.stop, self.size]
        self._parts = [slice(a, b) for a, b in pairwise(bounds) if a < b]

    def bind(self, gradient: torch.Tensor) -> None:
        """Accumulate into this slice from now on."""
        self.gradient = gradient

    def outgoing(self) -> memoryview:
        """The bytes of the whole state, to send: on a CPU its own memory, otherwise a copy of it."""
        return bytes_of(self.buffer)

    def incoming(self) -> memoryview:
        """Where to receive the whole state. Call `arrived` when it is full."""
        if self.buffer.device.type == "cpu":
            return bytes_of(self.buffer)
        self._staged = torch.empty(ROWS, self.size, pin_memory=True)
        return bytes_of(self._staged)

    def arrived(self) -> None:
        """The memory that `incoming` gave has been filled."""
        if self._staged is not None:
            self.buffer.copy_(self._staged)
            self._staged = None

    def digest(self) -> str:
        """SHA-256 of the fp32 weights, hexadecimal."""
        return hashlib.sha256(bytes_of(self.buffer[0])).hexdigest()

    def tied_digest(self) -> str:
        """SHA-256 of weights and moments of what another layer holds too."""
        assert self.tied is not None
        return hashlib.sha256(bytes_of(self.buffer[:, self.tied].contiguous())).hexdigest()

    def square_norm(self) -> float:
        """Squared norm of the accumulated gradient, in float64; of a tied tensor in the first layer only."""
        own = [part for part in self._parts if part != self.tied or self.index == 0]
        gradients = [self.gradient[part] for part in own]
        return sum(float(torch.dot(gradient, gradient).double()) for gradient in gradients)

    def scaled(self, scale: float) -> torch.Tensor:
        """The accumulated gradient times `scale` in fp32: all that an update depends on. Not reused."""
        return (self.gradient * scale).float()

    def update(
        self,
        step: int,
        gradient: torch.Tensor,
        optimiser: AdamW,
        half_way: Callable[[], None] | None = None,
    ) -> None:
        """Update with this gradient, which is only read; `step` counts from 0. Local, no network.

        Whoever holds the same state and gives the same gradient gets the same bits; so does `control.adamw`.
        """
        half = self.size // 2
        for start, end in ((0, half), (half, self.size)):
            if start and half_way is not None:
                half_way()
            if self.buffer.device.type == "cpu":
                rows, row = self.buffer.numpy()[:, start:end], gradient.numpy()[start:end]
                adamw.apply(rows, row, step, optimiser)
            else:
                update_on_device(self.buffer[:, start:end], gradient[start:end], step, optimiser)

    def _accumulator(self, start: int, end: int) -> Callable[[torch.Tensor], None]:
        # Weakly held, or a layer would keep itself and its state alive until cycles are collected.
        owner, exact = weakref.ref(self), self._exact

        def accumulate(parameter: torch.Tensor) -> None:
            gradient, layer = parameter.grad, owner()
            assert gradient is not None and layer is not None
            target = layer.gradient[start:end]
            if exact:
                target.add_(gradient.reshape(-1).double().add_(_GRID).sub_(_GRID))
            else:
                target.add_(gradient.reshape(-1))
            parameter.grad = None

        return accumulate


def update_on_device(state: torch.Tensor, gradient: torch.Tensor, step: int, optimiser: AdamW) -> None:
    """`control.adamw.apply` for tensors: the same operations in the same order, each rounded once.

    On a CPU numpy does it: torch's square root there is MKL's, which does not round correctly.
    """
    factors = adamw.Factors.of(step, optimiser)
    weights, first, second = state
    weights.mul_(factors.decay)
    first.mul_(optimiser.beta1).add_(gradient * factors.first_share)
    second.mul_(optimiser.beta2).add_((gradient * gradient).mul_(factors.second_share))
    denominator = second.sqrt().mul_(factors.second_correction).add_(optimiser.epsilon)
    weights.sub_((first * factors.rate).div_(denominator))


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor; those of a CPU tensor are shared, not copied."""
    array: Any = tensor.cpu().numpy()
    return memoryview(array).cast("B")
