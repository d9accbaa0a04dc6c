"""The votes of one step: when all are in the step is decided, and they say what was trained."""

from __future__ import annotations

import math

from runtime.control.job.job import Transfer
from runtime.control.messages import Vote
from runtime.control.training.training import TrainingError


class CoverageError(TrainingError):
    """The votes do not add up to the whole mini-batch, once: a bug, since the weights would be wrong."""


class Ballot:
    """The votes for (generation, step) of as many workers as there are positions."""

    def __init__(self, generation: int, step: int, positions: int) -> None:
        self.generation, self.step = generation, step
        self._positions = positions
        self._votes: dict[str, Vote] = {}

    def cast(self, node: str, vote: Vote) -> bool:
        """Count a vote, unless it is for another step; whether all are in now."""
        if (vote.generation, vote.step) != (self.generation, self.step):
            return False
        self._votes[node] = vote
        return len(self._votes) == self._positions

    def check_coverage(self, micro_batches: int) -> None:
        """What the last stages report must be every micro-batch, once: the ledger counts on it.

        Raises:
            CoverageError: it is not.
        """
        done = sorted(micro_batch for vote in self._votes.values() for micro_batch, _ in vote.losses)
        if done != list(range(micro_batches)):
            raise CoverageError(f"step {self.step}: micro-batches {done} were trained: a bug in Parcae")

    @property
    def loss(self) -> float:
        """Mean over micro-batches, summed exactly, so that it does not depend on who reported what."""
        losses = [loss for vote in self._votes.values() for _, loss in vote.losses]
        return math.fsum(losses) / len(losses)

    @property
    def held_out_loss(self) -> float | None:
        """Mean over the held-out micro-batches, summed exactly; None in a step that does not evaluate.

        Raises:
            CoverageError: a micro-batch is missing, or there twice.
        """
        pairs = sorted(pair for vote in self._votes.values() for pair in vote.held_out_losses)
        done = [micro_batch for micro_batch, _ in pairs]
        if done != list(range(len(pairs))):
            raise CoverageError(f"step {self.step}: held-out micro-batches {done} came: a bug in Parcae")
        return math.fsum(loss for _, loss in pairs) / len(pairs) if pairs else None

    def clip_scale(self, clip_norm: float) -> float:
        """The factor that brings the norm of the whole gradient down to `clip_norm`; 1 if it is below.

        `clip_norm` 0 means no clipping.
        """
        squares = (square for vote in self._votes.values() for _, square in vote.square_norms)
        norm = math.sqrt(math.fsum(squares))
        return clip_norm / norm if 0 < clip_norm < norm else 1.0

    @property
    def transfer(self) -> Transfer:
        """The state that the voters loaded from others before this step."""
        votes = self._votes.values()
        return Transfer(
            bytes_ahead=sum(vote.ahead_bytes for vote in votes),
            copy_s=max(vote.ahead_s for vote in votes),
            bytes_at_switch=sum(vote.fetched_bytes for vote in votes),
            fetch_s=max(vote.fetch_s for vote in votes),
        )

    @property
    def backup_s(self) -> float:
        """What the backup cost the slowest voter since its last vote, in seconds."""
        return max((vote.backup_s for vote in self._votes.values()), default=0.0)
