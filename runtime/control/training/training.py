"""What a coordinator is told to train, and how fast training goes."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from runtime.control.fleet.link_times import LinkTimes
from runtime.control.messages import Configure
from runtime.control.training.observed import StepTimes
from runtime.planning.model import ModelSpec
from runtime.planning.profile import Profile
from runtime.planning.types import Layout

# A step without all votes by then is abandoned, though nobody is known to have died.
STEP_TIMEOUT_S = 60.0
# A worker that does not answer an abort for this long, or two steps, is taken for dead: one that computes
# looks up between two micro-batches only. (One that hangs is found by its agent.)
ABORT_TIMEOUT_S = 4.0
_RECENT_STEPS = 30
# A noticed node is given up this long before its deadline at least, or so many steps.
_MIN_NOTICE_LEAD_S = 1.0
_LEAD_STEPS = 6


class TrainingError(Exception):
    """The job cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Training:
    """What to train, and how the job is run. `interval_s` is in wall seconds.

    `first_step` is above 0 where a checkpoint is continued. Without `copy_ahead` all state is sent at the
    switch: that is for measuring. `backup` is one of `backup_orders.MODES`. With the policy `checkpoint`
    state is saved every `checkpoint_every` steps, or by Young's rule if that is 0. A job that `learns`
    corrects its profile by the steps it sees. `lame_s`, `unready_s`: see LinkTimes.
    """

    model: ModelSpec
    model_template: dict[str, Any]
    steps: int
    seed: int
    corpus: list[str]
    token: bytes
    interval_s: float
    backup_every: int
    backup: str = "state"
    checkpoint_every: int = 0
    exact: bool = True
    copy_ahead: bool = True
    learns: bool = False
    lame_s: float = LinkTimes.lame_s
    unready_s: float = LinkTimes.unready_s
    first_step: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)

    def configure(self, node: str, backup: tuple[str, int] | None, faults: list[dict[str, Any]]) -> Configure:
        """What a new worker is told about the job."""
        return Configure(
            node=node,
            model=self.model_template,
            seed=self.seed,
            corpus=self.corpus,
            token=self.token.hex(),
            backup=None if backup is None else list(backup),
            exact=self.exact,
            faults=faults,
        )


class Pace:
    """When steps were committed, and how long an ordinary one takes. Seconds on one clock."""

    def __init__(self, profile: Profile | None = None) -> None:
        """`profile` is corrected by the steps that are seen; None: it is not."""
        self.times = StepTimes(profile)
        self._last_s: float | None = None
        self._ordinary: deque[float] = deque(maxlen=_RECENT_STEPS)
        self._patience = 1

    @property
    def ordinary_s(self) -> float:
        """The median of recent steps without a migration; 0 before the first."""
        return statistics.median(self._ordinary) if self._ordinary else 0.0

    @property
    def timeout_s(self) -> float:
        """After how long a step that nobody has finished is stuck."""
        return self._patience * max(STEP_TIMEOUT_S, 50 * self.ordinary_s)

    @property
    def abort_timeout_s(self) -> float:
        """After how long a worker that does not answer an abort is mute."""
        return max(ABORT_TIMEOUT_S, 2 * self.ordinary_s)

    def stuck(self) -> None:
        """A step was abandoned since it took too long; perhaps it only takes long: be more patient next."""
        self._patience *= 2

    def notice_lead_s(self, planned_s: float) -> float:
        """How long before its deadline a node is given up: earlier wastes it, later may be too late.

        `planned_s` is what the cost model asks for.
        """
        return max(_MIN_NOTICE_LEAD_S, planned_s, _LEAD_STEPS * self.ordinary_s)

    def commit(self, now_s: float, fresh: bool, layout: Layout) -> float:
        """A step was committed, `fresh` if a generation's first. Returns its time less an ordinary step's."""
        step_s = now_s - self._last_s if self._last_s is not None else 0.0
        pause_s = max(0.0, step_s - self.ordinary_s)
        if not fresh and self._last_s is not None:
            self._ordinary.append(step_s)
            self.times.note(layout, step_s)
        self._last_s, self._patience = now_s, 1
        return pause_s


NEVER_S = math.inf
