"""Redundancy: a worker that keeps a copy of another's stage gets the gradient that it is updated by.

It is sent within the step, before the vote: whoever votes has all that its own layers and its copies need, so
a step is committed in both or in neither, and a copy is never behind.
"""

from __future__ import annotations

from runtime.engine.generation import Generation
from runtime.engine.groups import GlooGroups


def exchange_gradients(generation: Generation) -> None:
    """Send the own stages' summed gradients to who keeps copies of them, and get those of the own copies.

    Raises:
        AbandonedError: the generation was aborted.
        RuntimeError: the network failed.
    """
    groups, own = generation.groups(), generation.stage
    if not any(generation.shadows):
        return
    assert isinstance(groups, GlooGroups), "redundancy is for CPUs"
    sent = [
        groups.send_copy(generation.gradients[stage], stage, rank)
        for rank, kept in enumerate(generation.shadows)
        for stage in kept
        if stage in generation.works[own] and rank != own
    ]
    received = [
        groups.receive_copy(generation.gradients[stage], stage, rank)
        for stage in generation.shadows[own]
        for rank, works in enumerate(generation.works)
        if stage in works
    ]
    generation.keep_alive = generation.keep_alive, sent, received
    for work in received:
        generation.waiter.wait(work)
