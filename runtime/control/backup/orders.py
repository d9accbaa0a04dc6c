"""When workers are told to send their state, or the gradients of a step, to the backup."""

from __future__ import annotations

from runtime.control.backup.process import BackupPort

MODES = ("state", "gradients", "none")
# A state that has not arrived after so many periods is given up.
_PATIENCE = 5


class BackupOrders:
    """`mode` is one of MODES; with `state`, every `every` steps, one copy at a time.

    While the last copy is on its way the next is skipped, which bounds memory and traffic. A new backup is
    given the state at once, and with `at_once` the first one is new.
    """

    def __init__(self, mode: str, every: int, at_once: bool = False) -> None:
        self._mode, self._every = mode, every
        self._sent: int | None = None
        self._restarts = -1 if at_once else 0

    def at(self, steps: int, last: bool, fresh: bool, backup: BackupPort) -> tuple[bool, bool]:
        """With the commit that makes it `steps` steps: push the state after it, stream its gradient?

        `fresh` is a generation's first commit.
        """
        if self._mode == "none":
            return False, False
        status = backup.status
        anew = status.restarts != self._restarts
        if anew:
            self._restarts, self._sent = status.restarts, None
        if self._mode == "gradients":
            push = status.needs_state and self._free(steps, status.latest)
        else:
            push = last or ((anew or steps % self._every == 0) and self._free(steps, status.latest))
        if push:
            self._sent = steps
            backup.expect(steps)
        return push, self._mode == "gradients" and not push

    @property
    def halts(self) -> bool:
        """Whether training is to stand still after this commit."""
        return False

    def reset(self) -> None:
        """A new generation: whoever was sending may be gone."""
        self._sent = None

    def _free(self, steps: int, arrived: int | None) -> bool:
        if self._sent is None or (arrived is not None and arrived >= self._sent):
            return True
        return steps - self._sent > _PATIENCE * self._every
