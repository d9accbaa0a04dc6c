"""The gradients of layers that others have copied and follow: kept until each follower has them."""

from __future__ import annotations

import torch

# A follower that is farther behind than this copies the layer anew: three gradients are as big as the state.
MOST_KEPT = 3


class GradientLog:
    """Which layers are followed, by whom, from which step on. Not thread-safe: its owner locks."""

    def __init__(self) -> None:
        self._followers: dict[int, dict[int, int]] = {}  # layer -> follower -> the step it needs next
        self._kept: dict[int, dict[int, torch.Tensor]] = {}  # layer -> step -> gradient

    def follow(self, layer: int, follower: int, step: int) -> None:
        """The follower has the layer before `step`; from now on it needs the gradients from `step` on."""
        self._followers.setdefault(layer, {})[follower] = step
        self._prune(layer)

    def leave(self, follower: int) -> None:
        """The follower needs nothing any more."""
        for layer in [layer for layer, steps in self._followers.items() if follower in steps]:
            del self._followers[layer][follower]
            self._prune(layer)

    def add(self, layer: int, step: int, gradient: torch.Tensor) -> None:
        """Keep the gradient that the layer's `step` is committed with, if anybody follows it."""
        if layer in self._followers:
            self._kept.setdefault(layer, {})[step] = gradient
            self._prune(layer)

    def get(self, layer: int, step: int) -> torch.Tensor | None:
        """The gradient of that step, if it is (still) here."""
        return self._kept.get(layer, {}).get(step)

    @property
    def followed(self) -> frozenset[int]:
        """The layers that have a follower."""
        return frozenset(self._followers)

    def _prune(self, layer: int) -> None:
        needed = self._followers.get(layer)
        if not needed:
            self._followers.pop(layer, None)
            self._kept.pop(layer, None)
            return
        kept = self._kept.get(layer, {})
        oldest = max(min(needed.values()), max(kept, default=0) - MOST_KEPT + 1)
        for step in [step for step in kept if step < oldest]:
            del kept[step]
