"""The gradient of a token table that the embedding and the head share: the sum over both uses, at both ends.

Each of the two layers holds its own copy of the table, with moments, like any other part of its state: so
migrations, the backup and checkpoints need to know nothing of it. The copies start equal and get equal
gradients, hence stay equal. In exact mode both gradients are multiples of 2^-42, so their sum is exact; in
fast mode it is rounded, but alike at both ends, since a + b = b + a.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from runtime.engine.generation import Generation
from runtime.engine.state import LayerState


def sum_tied(generation: Generation, layers: Mapping[int, LayerState]) -> None:
    """Replace the tied gradients, already summed over replicas, by their sum over both uses.

    Raises:
        AbandonedError: the generation was aborted.
        RuntimeError: the network failed.
    """
    held = [layer for index in generation.layers if (layer := layers[index]).tied is not None]
    tables = [layer.gradient[layer.tied] for layer in held]
    if len(tables) == 2:
        total = tables[0] + tables[1]
        for table in tables:
            table.copy_(total)
    elif tables:
        outgoing, incoming = tables[0].clone(), torch.empty_like(tables[0])
        works = generation.groups().exchange_ends(outgoing, incoming)
        generation.keep_alive = generation.keep_alive, outgoing, incoming, works
        generation.waiter.wait(works[0])
        tables[0].add_(incoming)
