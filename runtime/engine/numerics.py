"""In which precision a layer is computed, and whether its activations are kept or computed again.

The state stays fp32 in any case: with bf16, matrix products run in bf16 under autocast while weights,
moments, norms, the residual stream and gradients stay fp32. A recomputed layer gives the same bits as a kept
one.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from runtime.planning.errors import InputError
from runtime.planning.model import TrainingSpec

TRAINABLE = ("fp32", "bf16")


@dataclass(frozen=True)
class Numerics:
    """How to compute a layer forward on `device`."""

    device: torch.device
    bf16: bool
    recompute: bool

    @classmethod
    def of(cls, training: TrainingSpec, device: torch.device) -> Numerics:
        """As a template says.

        Raises:
            InputError: training in that type is not there (fp16 would need loss scaling).
        """
        if training.dtype not in TRAINABLE:
            raise InputError(
                f"training.dtype: {training.dtype} cannot be trained; use {' or '.join(TRAINABLE)}"
            )
        return cls(device, training.dtype == "bf16", training.recompute)

    def forward(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """The layer's output."""
        cast = (
            torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext()
        )
        with cast:
            if self.recompute:
                out: torch.Tensor = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
            else:
                out = layer(x)
        return out
