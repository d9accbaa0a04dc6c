"""A GPT as a list of layers: embedding, pre-norm blocks, head (Radford et al., 2019).

Layer i of a model and seed is the same everywhere: any node can make any layer by itself. Dropout is where
GPT-2 has it (after the embedding, on attention weights, on both residual branches) and draws from torch's
default generator, which `Numerics.forward` seeds anew for every layer and micro-batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import nn

from runtime.planning.model import GptShape


def _shape_only(*size: int) -> nn.Parameter:
    """A parameter without memory. torch.nn's own layers would initialise it, which on the meta device loads
    hundreds of modules (a second); ours are filled by `initialise_layer` or by a transfer.
    """
    return nn.Parameter(torch.empty(*size, device="meta"))


class Linear(nn.Module):
    """An affine map of the last dimension."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = _shape_only(outputs, inputs)
        self.bias = _shape_only(outputs) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Normalises the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = _shape_only(width), _shape_only(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias)


class Embedding(nn.Module):
    """Token and position embedding: [batch, seq] int64 to [batch, seq, d_model]."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.token = _shape_only(shape.vocab, shape.d_model)
        self.position = _shape_only(shape.seq, shape.d_model)

    def forward(self, tokens: torch.Tensor, dropout: float) -> torch.Tensor:
        out = functional.embedding(tokens, self.token) + self.position[: tokens.shape[1]]
        return _dropped(out, dropout)


class Block(nn.Module):
    """Causal self-attention and a 4x MLP, each behind a LayerNorm: [batch, seq, d_model] to the same."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        d = shape.d_model
        self.heads = shape.heads
        self.norm_attention, self.norm_mlp = LayerNorm(d), LayerNorm(d)
        self.qkv, self.project = Linear(d, 3 * d), Linear(d, d)
        self.expand, self.contract = Linear(d, 4 * d), Linear(4 * d, d)

    def forward(self, x: torch.Tensor, dropout: float) -> torch.Tensor:
        batch, seq, d = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(batch, seq, 3, self.heads, d // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True
        )
        x = x + _dropped(self.project(attended.transpose(1, 2).reshape(batch, seq, d)), dropout)
        return x + _dropped(self.contract(functional.gelu(self.expand(self.norm_mlp(x)))), dropout)


class Head(nn.Module):
    """Final LayerNorm and output matrix: [batch, seq, d_model] to [batch, seq, vocab]."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.norm = LayerNorm(shape.d_model)
        self.output = Linear(shape.d_model, shape.vocab, bias=False)

    def forward(self, x: torch.Tensor, dropout: float) -> torch.Tensor:
        out: torch.Tensor = self.output(self.norm(x))
        return out


def _dropped(x: torch.Tensor, dropout: float) -> torch.Tensor:
    return functional.dropout(x, dropout) if dropout else x


def build_layer(shape: GptShape, index: int) -> nn.Module:
    """Layer `index` (0: embedding, 1..layers: blocks, layers + 1: head) on the meta device: no memory yet."""
    if index == 0:
        return Embedding(shape)
    return Block(shape) if index <= shape.layers else Head(shape)


def initialise_layer(layer: nn.Module, shape: GptShape, index: int, seed: int) -> None:
    """Fill the parameters in place, as a function of `seed` and `index` alone.

    Matrices are normal with deviation 0.02, those that end in the residual stream divided by
    sqrt(2 * layers); norms start at one, biases at zero. A tied output matrix starts as the token table.
    """
    generator = _generator(seed, index)
    residual = 0.02 / (2 * shape.layers) ** 0.5
    tied = tied_parameter(shape, index)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name == tied:
                # The first numbers of the embedding's generator, in whichever layer they are drawn.
                parameter.normal_(0.0, 0.02, generator=_generator(seed, 0) if index else generator)
            elif parameter.dim() >= 2:
                deviation = residual if name.startswith(("project", "contract")) else 0.02
                parameter.normal_(0.0, deviation, generator=generator)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)


def tied_parameter(shape: GptShape, index: int) -> str | None:
    """The name of the tensor of layer `index` that another layer holds too; None where there is none."""
    if not shape.tied_embeddings:
        return None
    return {0: "token", shape.layers + 1: "output.weight"}.get(index)


def _generator(seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + index)


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per token of one micro-batch, in nats. Micro-batches are of equal size."""
    return functional.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), targets.reshape(-1))
