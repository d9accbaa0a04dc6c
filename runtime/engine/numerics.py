"""In which precision a layer is computed, and whether its activations are kept or computed again.

The state stays fp32 in any case: with bf16, matrix products run in bf16 under autocast while weights,
moments, norms, the residual stream and gradients stay fp32. A recomputed layer gives the same bits as a kept
one.

Dropout is seeded for each (job, step, micro-batch of the mini-batch, layer) and knows nothing of pipelines
and stages; a layer that is computed again seeds it again, so it leaves out the same values.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from runtime.control.wire import AdamW
from runtime.planning.errors import InputError
from runtime.planning.training import TrainingSpec

TRAINABLE = ("fp32", "bf16")


def optimiser_of(training: TrainingSpec) -> AdamW:
    """The optimiser's constants as a template has them."""
    return AdamW(
        training.learning_rate, training.weight_decay, training.beta1, training.beta2, training.epsilon
    )


@dataclass(frozen=True)
class Numerics:
    """How to compute a layer forward on `device`."""

    device: torch.device
    bf16: bool
    recompute: bool
    dropout: float

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
        return cls(device, training.dtype == "bf16", training.recompute, training.dropout)

    @property
    def _generator(self) -> torch.Generator:
        """The one that dropout draws from: attention takes no other."""
        if self.device.type == "cuda":
            return torch.cuda.default_generators[self.device.index or 0]
        return torch.default_generator

    def forward(self, layer: nn.Module, x: torch.Tensor, seed: int | None) -> torch.Tensor:
        """The layer's output; `seed` decides what dropout leaves out; None: nothing."""
        dropout = 0.0 if seed is None else self.dropout

        def compute(x: torch.Tensor) -> torch.Tensor:
            if dropout:
                assert seed is not None
                self._generator.manual_seed(seed)
            out: torch.Tensor = layer(x, dropout)
            return out

        cast = (
            torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext()
        )
        with cast:
            if self.recompute and torch.is_grad_enabled():
                out: torch.Tensor = checkpoint(compute, x, use_reentrant=False, preserve_rng_state=False)
                return out
            return compute(x)


def dropout_seed(job_seed: int, step: int, micro_batch: int, layer: int) -> int:
    """The seed of one layer's dropout in one micro-batch (its number in the whole mini-batch) of a step."""
    key = f"dropout {job_seed} {step} {micro_batch} {layer}".encode()
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little")
