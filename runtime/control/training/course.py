"""Where training stands: the generation at work, the next one, the step in flight, and the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.control.training.generations import Pending
from runtime.control.training.phases import Phase
from runtime.control.training.training import NEVER_S
from runtime.control.training.votes import Ballot
from runtime.planning.ledger import Ledger
from runtime.planning.types import Event, MigrationPlan


@dataclass
class Course:
    """What the coordinator and its parts change as the job goes on.

    `steps` is where the job ends. `deadline_s` is on the coordinator's clock: what is awaited by then depends
    on the phase. `planning` is what the controller has not been told yet.
    """

    ledger: Ledger
    steps: int
    highest_generation: int = 0
    phase: Phase = Phase.WAITING
    running: MigrationPlan | None = None
    fresh: bool = False  # the running generation has not committed a step yet
    pending: Pending | None = None
    ballot: Ballot = field(default_factory=lambda: Ballot(0, 0, 0))
    deadline_s: float = NEVER_S
    planning: list[Event] = field(default_factory=list)

    @property
    def step(self) -> int:
        """The step that is to be committed next; as many have been."""
        return self.ledger.committed_steps

    def postpone(self, gap_s: float) -> None:
        """For so long nobody could have been heard: what is awaited may come later by as much."""
        self.deadline_s += gap_s
        if self.pending is not None:
            self.pending.since_s += gap_s

    def wait(self) -> None:
        """No generation is at work, and none is being built."""
        self.phase, self.running, self.pending, self.deadline_s = Phase.WAITING, None, None, NEVER_S
