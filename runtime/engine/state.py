"""The state of a layer: one flat [3, N] fp32 buffer (weights, first and second moment), and its gradient.

The module's parameters are views into row 0, so a migration moves one contiguous block, straight into place.

Exact mode makes the sum of gradients independent of the layout. Each micro-batch's gradient is rounded to a
multiple of 2^-42 and summed in float64. Multiples of 2^-42 below 2^11 have at most 53 significant bits, so
every partial sum is exact and any order of summation gives the same bits; the result is rounded to fp32 once.
Fast mode sums in fp32, in an order that depends on the layout.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Adding and subtracting 1.5 * 2^(52-42) in float64 rounds to a multiple of 2^-42 for |x| < 2^9.
_GRID = 1.5 * 2.0 ** (52 - 42)
ROWS = 3


@dataclass(frozen=True)
class AdamW:
    """Decoupled weight decay Adam (Loshchilov and Hutter, 2019), with bias correction."""

    learning_rate: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float


class LayerState:
    """One layer of the model with its optimiser state, zero until it is initialised or received.

    `module` comes from the meta device; its parameters become views of `buffer`, [3, N] fp32. `gradient` is a
    slice of the generation's flat gradient, set by `bind`.
    """

    def __init__(self, index: int, module: nn.Module, exact: bool, device: torch.device) -> None:
        self.index = index
        self.module = module
        self._exact = exact
        named = [
            (owner, name, p)
            for owner in module.modules()
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
            setattr(owner, name, parameter)
            start = end

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

    def square_norm(self) -> float:
        """Squared norm of the accumulated gradient, in float64."""
        return float(torch.dot(self.gradient, self.gradient).double())

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

        Whoever holds the same state and gives the same gradient gets the same bits.
        """
        count = step + 1
        weights, first, second = self.buffer
        weights.mul_(1 - optimiser.learning_rate * optimiser.weight_decay)
        first.lerp_(gradient, 1 - optimiser.beta1)
        if half_way is not None:
            half_way()
        second.mul_(optimiser.beta2).addcmul_(gradient, gradient, value=1 - optimiser.beta2)
        denominator = (second.sqrt() / math.sqrt(1 - optimiser.beta2**count)).add_(optimiser.epsilon)
        weights.addcdiv_(first, denominator, value=-optimiser.learning_rate / (1 - optimiser.beta1**count))

    def _accumulator(self, start: int, end: int) -> Callable[[torch.Tensor], None]:
        def accumulate(parameter: torch.Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            target = self.gradient[start:end]
            if self._exact:
                target.add_(gradient.reshape(-1).double().add_(_GRID).sub_(_GRID))
            else:
                target.add_(gradient.reshape(-1))
            parameter.grad = None

        return accumulate


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor; those of a CPU tensor are shared, not copied."""
    array: Any = tensor.cpu().numpy()
    return memoryview(array).cast("B")


def bind_gradients(layers: Sequence[LayerState], exact: bool) -> torch.Tensor:
    """One flat zeroed gradient for these layers; each accumulates into its slice.

    A generation has its own, since an abandoned reduction may go on writing into the old one.
    """
    flat = torch.zeros(sum(layer.size for layer in layers), dtype=torch.float64 if exact else torch.float32)
    start = 0
    for layer in layers:
        layer.bind(flat[start : start + layer.size])
        start += layer.size
    return flat
