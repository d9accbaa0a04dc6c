"""The memory that gradients are accumulated in: one flat tensor for each stage of a generation.

Fresh memory costs a page fault every 4 kB when it is first written, more than all else that a worker does at
a switch. So a generation takes over what the one before it has left, and gets what it lacks ahead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from runtime.engine.state import LayerState

_ALIGNMENT = 16  # values: a layer's slice of the flat gradient begins at a multiple of 64 bytes
# Memory is used again if it is at most this many times too large: a stage must not hold for good what only
# a longer one has needed.
_MOST_SPARE = 1.5


def flat_values(sizes: Iterable[int]) -> int:
    """The number of values of a flat gradient for layers of these sizes.

    Slices are aligned, so that a layer's norm is summed in the same way whatever lies before it.
    """
    return sum(map(_padded, sizes))


def new_gradient(values: int, exact: bool, device: torch.device) -> torch.Tensor:
    """Zeros, in memory that the system has really given: float64 in exact mode, fp32 otherwise."""
    dtype = torch.float64 if exact else torch.float32
    return torch.empty(values, dtype=dtype, device=device).zero_()


def take(memory: list[torch.Tensor], values: int) -> torch.Tensor | None:
    """Take out the smallest piece that does for so many values, if there is one."""
    fitting = [piece for piece in memory if values <= piece.numel() <= max(1, values) * _MOST_SPARE]
    piece = min(fitting, key=torch.numel, default=None)
    memory[:] = [other for other in memory if other is not piece]
    return piece


def lacking(memory: Sequence[torch.Tensor], wanted: Iterable[int]) -> list[int]:
    """Of flat gradients of so many values each, those for which no piece of memory is left."""
    left = list(memory)
    return [values for values in wanted if take(left, values) is None]


def bind_gradients(
    layers: Sequence[LayerState], exact: bool, memory: list[torch.Tensor] | None = None
) -> torch.Tensor:
    """One flat gradient for these layers; each accumulates into its slice. To be zeroed before use.

    It is taken out of `memory` where a piece of that fits. Nobody else may still write there: what an
    abandoned reduction works on is no such memory.
    """
    values = flat_values(layer.size for layer in layers)
    piece = None if memory is None else take(memory, values)
    if piece is None:
        piece = new_gradient(values, exact, layers[0].buffer.device)
    flat, start = piece[:values], 0
    for layer in layers:
        layer.bind(flat[start : start + layer.size])
        start += _padded(layer.size)
    return flat


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
