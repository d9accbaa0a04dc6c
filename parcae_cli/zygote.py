"""`python -m parcae_cli.zygote`: the process that forks workers and agents for all nodes of this machine.

Loading torch takes seconds of CPU; a fork of a process that has loaded it takes milliseconds. The zygote
has one thread and never touches torch beyond the import, so that its children start clean. It leaves when
its lifeline (a descriptor whose other end the launcher holds) closes.

Who asks for a worker sends its control descriptor along, who asks for an agent's start its standard input,
output and error: the child has them for its own, and answers with its exit code.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

_REQUEST_TIMEOUT_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Listen first, load second: requests wait in the queue of the socket meanwhile."""
    parser = argparse.ArgumentParser(prog="python -m parcae_cli.zygote", description=__doc__)
    parser.add_argument("--socket", required=True, help="path of the socket to listen on")
    parser.add_argument(
        "--lifeline-fd", type=int, required=True, help="leave when this descriptor reads end of file"
    )
    parsed = parser.parse_args(arguments)

    from cloud.processes import Register

    if "PARCAE_REGISTER" in os.environ and not Register(Path(os.environ["PARCAE_REGISTER"])).enter("zygote"):
        return 1
    listener = socket.socket(socket.AF_UNIX)
    Path(parsed.socket).unlink(missing_ok=True)
    listener.bind(parsed.socket)
    listener.listen(256)
    _load(os.environ.get("PARCAE_ENGINE", "runtime.engine.worker"))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
    while True:
        readable, _, _ = select.select([listener, parsed.lifeline_fd], [], [])
        if parsed.lifeline_fd in readable:
            return 0
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(_REQUEST_TIMEOUT_S)
            try:
                _serve(connection, listener, parsed.lifeline_fd)
            except (OSError, SyntaxError, ValueError, KeyError):
                traceback.print_exc()


def _load(engine: str) -> None:
    """Import what children will need. What fails here fails again in the child, where somebody is told."""
    for module in ("parcae_cli.agent", "runtime.control.node.daemon", engine):
        try:
            importlib.import_module(module)
        except Exception:  # noqa: BLE001
            traceback.print_exc()
    gc.collect()
    gc.freeze()  # else the first collection of each child would write to, and so copy, every page of these


def _serve(connection: socket.socket, listener: socket.socket, lifeline_fd: int) -> None:
    """Read one request with its descriptors and fork; a worker's birth is told as `pid start`."""
    first, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    try:
        if not first:
            return
        with connection.makefile("rb") as lines:
            request = ast.literal_eval((first + lines.readline()).decode())
        agent = "agent" in request
        if len(descriptors) != (3 if agent else 1):
            return
        pid = os.fork()
        if pid == 0:
            listener.close()
            os.close(lifeline_fd)
            if agent:
                _start_agent(request, descriptors, connection)
            connection.close()
            _become_worker(request, descriptors[0])
        if not agent:
            from cloud.processes import start_ticks

            connection.sendall(f"{pid} {start_ticks(pid) or 0}".encode())
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _start_agent(request: dict[str, object], descriptors: Sequence[int], connection: socket.socket) -> None:
    """The child becomes the agent that the process which asked would have started. Never returns."""
    code = 1

    def told(code: int) -> None:
        connection.sendall(str(code).encode())
        connection.close()

    try:
        _begin(request, "start")
        from parcae_cli.agent import main as agent_main
        from parcae_cli.nursery import ZYGOTE

        del os.environ[ZYGOTE]  # this is it
        for own, given in enumerate(descriptors):
            os.dup2(given, own)
            os.close(given)
        arguments = request["agent"]
        assert isinstance(arguments, list)
        code = agent_main([str(word) for word in arguments], told)
        sys.stdout.flush()
        told(code)
    except BaseException:  # noqa: BLE001 - whoever asked sees it on its own standard error
        traceback.print_exc()
    finally:
        os._exit(code)


def _begin(request: dict[str, object], role: str) -> None:
    """A session and a register of its own, in the environment and the folder of whoever asked."""
    from cloud.processes import Register

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    environment = request["environment"]
    assert isinstance(environment, dict)
    register = environment.get("PARCAE_REGISTER")
    if register is not None and not Register(Path(register)).enter(role):
        os._exit(1)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(str(request["folder"]))


def _become_worker(request: dict[str, object], control_fd: int) -> None:
    """The child: a session, a register, an environment and a log of its own; then the engine.

    Never returns.
    """
    code = 1
    try:
        _begin(request, "worker")
        from parcae_cli.worker import run
        from runtime.control.node.priority import give_way

        give_way()
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(str(request["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for descriptor in {null, log} - {0, 1, 2}:
            os.close(descriptor)
        run(str(request["engine"]), control_fd)
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else leave.code is not None
        if isinstance(leave.code, str):
            print(leave.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - whatever ended the worker belongs in its log
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    raise SystemExit(main())
