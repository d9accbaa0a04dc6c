"""`python -m parcae_cli.worker --control-fd N`: the trainer process of one GPU, held by its agent."""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import select
import threading
import time
from collections.abc import Sequence
from pathlib import Path

# After its agent has gone a worker may finish what it is writing; then it has to leave, wherever it hangs.
_LAST_WORDS_S = 1.0


def leave_with_agent(control_fd: int) -> None:
    """Start a thread that ends this process soon after the far end of `control_fd` has closed.

    The engine sees the end of file too and leaves in better order; this is for the one that is stuck in a
    wait.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(control_fd, select.POLLRDHUP | select.POLLHUP)
        poll.poll()
        time.sleep(_LAST_WORDS_S)
        os._exit(1)

    threading.Thread(target=watch, name="leave-with-agent", daemon=True).start()


def run(engine: str, control_fd: int) -> None:
    """Enter the engine, a module with `main(control_fd)`; it is imported only here, for it is heavy."""
    faulthandler.enable()
    leave_with_agent(control_fd)
    importlib.import_module(engine).main(control_fd)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, take a place in the node's register, and work."""
    parser = argparse.ArgumentParser(prog="python -m parcae_cli.worker", description=__doc__)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--engine", default="runtime.engine.worker")
    parsed = parser.parse_args(arguments)

    from cloud.processes import Register

    if "PARCAE_REGISTER" in os.environ and not Register(Path(os.environ["PARCAE_REGISTER"])).enter("worker"):
        return 1
    run(parsed.engine, parsed.control_fd)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
