"""How a coordinator goes on with a job whose last one was killed: who holds what, and when that is enough."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.control.job.past import Past
from runtime.control.messages import Adopt, Configure, encode
from runtime.planning.state import ControllerState

# How long nodes that may hold state are waited for before training goes back to a checkpoint.
PATIENCE_S = 60.0


@dataclass
class Resumption:
    """A takeover under way. `step` is the next step to be committed, `generation` the highest ever heard of.

    `last` is what the last commit said: (generation, step, scale); before the first commit it fits nobody.
    """

    step: int
    generation: int
    last: tuple[int, int, float]
    layers: int
    _holds: dict[str, frozenset[int]] = field(default_factory=dict)
    _since_s: float | None = None

    @classmethod
    def of(cls, past: Past, first_step: int, layers: int) -> Resumption:
        """From what the disk says."""
        last = (-1, -1, 1.0)
        if past.rows:
            row: Mapping[str, Any] = past.rows[-1]
            last = (int(row["generation"]), int(row["step"]), float(row["scale"]))
        steps = past.steps
        return cls(first_step if steps is None else steps, past.highest_generation, last, layers)

    def state(self, fresh: ControllerState) -> ControllerState:
        """What the controller starts from: state exists once a step was committed."""
        return replace(fresh, started=self.last[0] >= 0, generation=self.generation)

    def adopt(self, configure: Configure) -> Adopt:
        """What a worker of the last coordinator's is told."""
        return Adopt(self.generation, *self.last, encode(configure))

    def answer(self, node: str, step: int, layers: Collection[int]) -> None:
        """A worker has left its generation. What it holds counts if it stands before the very next step."""
        self._holds[node] = frozenset(layers) if step == self.step else frozenset()

    def forget(self, node: str) -> None:
        """Its worker is a new one, which holds nothing."""
        self._holds.pop(node, None)

    def holds(self, alive: Collection[str]) -> dict[str, frozenset[int]]:
        """What is held by those that are still alive."""
        return {node: layers for node, layers in self._holds.items() if node in alive}

    def copies(self, alive: Collection[str]) -> dict[str, list[int]]:
        """Which holder sends which layers to the backup, which has forgotten everything: each layer once."""
        by_layer = {layer: node for node, layers in self.holds(alive).items() for layer in layers}
        nodes = set(by_layer.values())
        return {node: [layer for layer, holder in by_layer.items() if holder == node] for node in nodes}

    def is_whole(self, alive: Collection[str]) -> bool:
        """Whether every layer has a holder."""
        return len(frozenset().union(*self.holds(alive).values())) == self.layers

    def postpone(self, gap_s: float) -> None:
        """For so long nobody could have been heard."""
        if self._since_s is not None:
            self._since_s += gap_s

    def waits(self, alive: Collection[str], booting: bool, now_s: float) -> bool:
        """Whether state is missing that a node which has not answered yet may hold."""
        self._since_s = now_s if self._since_s is None else self._since_s
        late = now_s - self._since_s > PATIENCE_S
        return booting and not late and not self.is_whole(alive)
