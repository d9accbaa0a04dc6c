"""The digest of the final weights, layer by layer, from whoever still holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256

from runtime.control.backup.process import BackupPort
from runtime.control.training.training import TrainingError


class ReplicasDifferError(TrainingError):
    """Two holders of a layer have different weights: a bug, since replicas are equal after every step."""


# Under this number the holders of a tied table report their copy of it, weights and moments.
TIED_TABLE = -1


class FinalDigests:
    """Collects SHA-256 digests of all `layers` layers."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._known: dict[int, str] = {}
        self.holders: Mapping[str, frozenset[int]] = {}  # who was asked, and holds what

    @property
    def complete(self) -> bool:
        """Whether every layer is known."""
        return not self.missing

    @property
    def missing(self) -> set[int]:
        """The layers that nobody has reported."""
        return set(range(self._layers)) - set(self._known)

    def lose(self, node: str) -> None:
        """A holder is gone; a worker that comes in its place holds nothing."""
        self.holders = {other: layers for other, layers in self.holders.items() if other != node}

    def out_of_reach(self) -> bool:
        """Whether a layer that nobody has reported has lost its last holder."""
        return bool(self.missing - frozenset().union(*self.holders.values()))

    def whole(self, holds: Mapping[str, frozenset[int]]) -> bool:
        """Whether these holders have every layer that nobody has reported."""
        return not self.missing - frozenset().union(*holds.values())

    def report(self, pairs: Iterable[list[object]]) -> None:
        """Take what a worker says: [layer, digest] pairs.

        Raises:
            ReplicasDifferError: another worker said otherwise.
        """
        for layer, digest in pairs:
            assert isinstance(layer, int)
            if self._known.setdefault(layer, str(digest)) != digest:
                what = "copies of the tied table" if layer == TIED_TABLE else f"replicas of layer {layer}"
                raise ReplicasDifferError(f"two {what} differ: a bug in Parcae")

    def take_from(self, backup: BackupPort, step: int) -> bool:
        """Take all of it from the backup; whether it stands at `step`."""
        found = backup.weights_digests(step)
        if found is None:
            return False
        self._known.update(found)
        return True

    def weights(self) -> str:
        """SHA-256 over the layers' digests in order, hexadecimal."""
        return sha256("".join(self._known[layer] for layer in range(self._layers)).encode()).hexdigest()
