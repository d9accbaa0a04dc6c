"""A launcher that is killed at a chosen moment: `-m tests.end_to_end.killed_launcher HOME MOMENT STEP`.

It launches the job `cut`, or goes on with it where it is in the journal already. A fourth argument is options
as JSON, in place of a local job's.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from runtime.control import messages
from runtime.control.job.journal import Journal
from runtime.control.job.launch import resume
from runtime.control.job.recorder import Recorder
from runtime.control.training.coordinator import Coordinator
from runtime.control.training.migration import Migration
from runtime.control.training.recovery import Recovery
from runtime.control.training.restarts import RestartingCoordinator
from tests.end_to_end.harness import STEPS, train

OPTIONS: dict[str, Any] = {"nodes": 4, "steps": STEPS}
# Moments that come after a loss: a node is killed for them.
LOSSES = ("a generation is begun", "survivors report", "everybody starts anew")


def die() -> None:
    """At once, as with `kill -9`."""
    os.kill(os.getpid(), signal.SIGKILL)


def soon() -> None:
    """When what was sent in this turn of the loop has gone out and been heard."""
    asyncio.get_running_loop().call_later(0.3, die)


def arm(moment: str, step: int) -> Any:
    """Have this process killed at the moment; returns what to do after every step."""
    send, finish = Coordinator._send, Coordinator._finish
    prepare, answer, write = Migration.prepare, Recovery.answer, Recorder.step
    restart = RestartingCoordinator._restart
    told: list[str] = []
    lost: list[str] = []

    def decided(self: Any, number: int, *rest: Any) -> None:
        write(self, number, *rest)
        if number == step:
            die()

    def told_one(self: Any, node: str, message: messages.Message) -> None:
        if isinstance(message, messages.Commit) and message.step == step:
            told.append(node)
            if len(told) > 1:
                soon()
                return
        send(self, node, message)

    def prepared(self: Any, plan: Any, ahead: bool = False) -> None:
        prepare(self, plan, ahead)
        if self._course.step >= step:
            die()

    def answered(self: Any, node: str, message: messages.Aborted) -> None:
        answer(self, node, message)
        if self._course.step >= step:
            die()

    def finished(self: Any, *holds: Any) -> None:
        finish(self, *holds)
        die()

    def restarted(self: Any, why: str) -> None:
        restart(self, why)
        soon()

    def lose_a_node(committed: int, provider: Any) -> None:
        if committed == step and moment in LOSSES and not lost:
            lost.append(min(provider.names()))
            provider.kill(lost[0])

    match moment:
        case "a step is decided":
            Recorder.step = decided  # type: ignore[method-assign]
        case "one worker is told":
            Coordinator._send = told_one  # type: ignore[method-assign]
        case "a generation is begun":
            Migration.prepare = prepared  # type: ignore[method-assign]
        case "survivors report":
            Recovery.answer = answered  # type: ignore[method-assign]
        case "everybody starts anew":
            RestartingCoordinator._restart = restarted  # type: ignore[method-assign]
        case "all is committed":
            Coordinator._finish = finished  # type: ignore[method-assign]
    return lose_a_node


def main() -> None:
    """See the module."""
    home, moment = Path(sys.argv[1]), sys.argv[2]
    watch = arm(moment, int(sys.argv[3]))
    journal = Journal(home)
    known = [record.name for record in journal.jobs()]
    journal.close()
    if "cut" in known:
        resume(home, "cut", watch)
    elif len(sys.argv) > 4:
        train(home, "cut", watch, **json.loads(sys.argv[4]))
    else:
        trace = "".join(f"0,add,n{number}\n" for number in range(8))
        safe = str(home / "checkpoints")
        train(home, "cut", watch, trace, checkpoint=safe, checkpoint_every=20, speed=60, **OPTIONS)


if __name__ == "__main__":
    main()
