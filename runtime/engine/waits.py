"""Waits that can be left behind.

Gloo has no abort: whoever waits for a peer that died may wait until the timeout, and a half-done send or
receive never fails at all. So each generation has a thread of its own in which every blocking call of
torch.distributed runs. When the coordinator says abort, the main thread leaves at once and the thread is left
to its timeout.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


class AbandonedError(Exception):
    """The generation has been aborted while we waited in it."""


class Waiter:
    """Runs blocking calls in one thread; `abandon` wakes whoever waits for their result."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def abandoned(self) -> bool:
        """Whether the generation is over."""
        return self._abandoned

    @property
    def finished(self) -> bool:
        """Whether the thread has ended, so that what it used can be freed."""
        return not self._thread.is_alive()

    def check(self) -> None:
        """Raises AbandonedError if the generation is over."""
        if self._abandoned:
            raise AbandonedError

    def post(self, function: Callable[[], Any]) -> None:
        """Run `function` in the thread; `collect` gives its result. Results come in the order of posting."""
        self._calls.put(function)

    def collect(self) -> Any:
        """The next result, once it is there.

        Raises:
            AbandonedError: the generation was aborted before; the call goes on by itself.
        """
        self.check()
        value, error = self._results.get()
        try:
            self.check()
            if error is not None:
                raise error
            return value
        finally:
            del error  # its traceback holds this frame: a circle, which would keep the groups

    def call(self, function: Callable[[], Result]) -> Result:
        """The result of `function`, run in the thread. Raises what `collect` raises."""
        self.check()
        self.post(function)
        result: Result = self.collect()
        return result

    def wait(self, work: Any) -> None:
        """Wait for a torch.distributed Work."""
        self.call(work.wait)

    def abandon(self) -> None:
        """End the generation: wake the waiting thread, let the blocked call run into its timeout."""
        self._abandoned = True
        self._results.put((None, AbandonedError()))
        self._calls.put(None)

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            try:
                outcome: tuple[Any, BaseException | None] = (function(), None)
            except BaseException as error:  # noqa: BLE001 - handed to the caller, whatever it is
                # Nobody may ever take it, and its traceback holds this frame, and so the generation's groups.
                outcome = (None, error.with_traceback(None))
            del function
            self._results.put(outcome)
            del outcome


class DeviceWork:
    """A Work on a GPU. Its own wait only orders streams; this one returns when the device has done it."""

    def __init__(self, work: Any, device: torch.device) -> None:
        self._work, self._device = work, device

    def wait(self) -> None:
        """Block the calling thread, which must be a Waiter's."""
        torch.cuda.set_device(self._device)
        self._work.wait()
        torch.cuda.current_stream(self._device).synchronize()

    def done_within(self, timeout_s: float) -> bool:
        """Whether the device has done it by then; unlike `wait`, this comes back though a peer is dead."""
        torch.cuda.set_device(self._device)
        self._work.wait()
        done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self._device))
        deadline_s = time.monotonic() + timeout_s
        while not done.query():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.001)
        return True
