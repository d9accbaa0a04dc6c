"""A worker as the controller knows it, whatever becomes of the processes that follow each other there."""

from __future__ import annotations

import json
from dataclasses import dataclass

from runtime.control.node.worker_seat import gpu_words, line_kind


@dataclass
class WorkerEnd:
    """The worker of one GPU of a node.

    `incarnation` is the one that has joined and is not lost; lines of incarnations up to `lost_up_to` are of
    no interest any more. `failures` counts those that ended before they joined, in a row.
    """

    name: str
    gpu: int
    incarnation: int | None = None
    lost_up_to: int = 0
    failures: int = 0
    pid: int = 0

    def joined(self, incarnation: int, pid: int) -> bool:
        """A worker has said hello; False if it is one that was given up before."""
        if incarnation <= self.lost_up_to:
            return False
        self.incarnation, self.failures, self.pid = incarnation, 0, pid
        return True

    def lose(self) -> bool:
        """Give up the worker that is there; False if there is none."""
        if self.incarnation is None:
            return False
        self.lost_up_to, self.incarnation = self.incarnation, None
        return True

    @property
    def kind(self) -> bytes:
        """The kind of the lines to the worker that is there."""
        assert self.incarnation is not None
        return line_kind(b"w", self.incarnation, self.gpu)

    @property
    def restart(self) -> bytes:
        """Tells the agent to end the worker that was given up."""
        words = {"t": "restart", "incarnation": self.lost_up_to}
        return json.dumps(words | gpu_words(self.gpu)).encode()
