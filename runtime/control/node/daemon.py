"""Starting an agent as a daemon: end what an earlier one left, detach, and say where the new one listens."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from cloud.processes import Register, is_alive, wait_until_gone
from runtime.control.node.agent import Agent, AgentOptions

_GONE_WITHIN_S = 3.0
_LOG_BYTES = 65536


def fence(folder: Path, register: Register) -> None:
    """SIGKILL the agents and workers on record here that still live, and remove the old agent's socket.

    A worker enters the register before it says hello; until then, its control socket's end ends it.
    """
    register.kill_roles("agent", "worker")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        Path(json.loads((folder / "agent.json").read_text())["socket"]).unlink()


def living_agent(folder: Path, register: Register) -> str:
    """What the agent that lives in this folder said when it began to listen; empty if none does."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        text = (folder / "agent.json").read_text()
        pid = json.loads(text)["pid"]
        if any(record.pid == pid and is_alive(record) for record in register.records()):
            return text
    return ""


def start_daemon(
    options: AgentOptions, adopt: bool = False, told: Callable[[int], None] | None = None
) -> int:
    """Start the agent in a session of its own; returns an exit code.

    It prints one JSON line {"agent","socket","pid"} once it listens. Starts in one folder wait for each
    other; the last one wins. With `adopt` an agent that lives there already is left at work, and speaks.
    With `told` this very process, the leader of a session, becomes the agent: the code goes there.
    """
    register = Register(options.register)
    with (options.folder / "agent.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if adopt and (line := living_agent(options.folder, register)):
            print(line, flush=True)
            return 0
        fence(options.folder, register)
        if told is not None:
            _become_daemon(options, register, lock, told)
        read_end, write_end = os.pipe()
        if os.fork() == 0:
            os.close(read_end)
            lock.close()
            os.setsid()
            _be_daemon(options, register, lambda line: _write_and_close(write_end, line))
        os.close(write_end)
        with os.fdopen(read_end) as ready:
            line = ready.readline()
    if not line:
        print(f"the agent did not start; see {options.log}", file=sys.stderr)
        return 1
    sys.stdout.write(line)
    sys.stdout.flush()
    return 0


def end_node(options: AgentOptions) -> int:
    """SIGKILL every process on record in this folder and remove it; returns an exit code.

    It prints one JSON line {"left","log"}: the processes that do not end, and the last of what was logged.
    """
    register = Register(options.register)
    register.close()
    left = wait_until_gone(register.kill(), _GONE_WITHIN_S)
    log = ""
    with contextlib.suppress(OSError), options.log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
        log = file.read().decode(errors="replace")
    print(json.dumps({"left": [record.pid for record in left], "log": log}), flush=True)
    if left:
        return 1
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        path = Path(json.loads((options.folder / "agent.json").read_text())["socket"])
        if not path.is_relative_to(options.folder) and path.parent.name.startswith("parcae-"):
            shutil.rmtree(path.parent)
    shutil.rmtree(options.folder, ignore_errors=True)
    return 0


def _write_and_close(descriptor: int, line: bytes) -> None:
    os.write(descriptor, line)
    os.close(descriptor)


def _become_daemon(
    options: AgentOptions, register: Register, lock: TextIO, told: Callable[[int], None]
) -> NoReturn:
    """Be the agent in this process; its standard output and error are let go of once it listens."""
    out, error = os.dup(1), os.dup(2)

    def ready(line: bytes) -> None:
        _write_and_close(out, line)
        os.close(error)
        lock.close()
        told(0)

    def failed() -> None:
        _write_and_close(error, f"the agent did not start; see {options.log}\n".encode())
        told(1)

    _be_daemon(options, register, ready, failed)


def _be_daemon(
    options: AgentOptions,
    register: Register,
    ready: Callable[[bytes], None],
    failed: Callable[[], None] = lambda: None,
) -> NoReturn:
    """The daemon's own process, from its birth to its end; `failed` is called if it never was `ready`."""
    code, listens = 1, False
    try:
        if not register.enter("agent"):
            os._exit(1)
        null = os.open(os.devnull, os.O_RDONLY)
        log = os.open(options.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        agent = Agent(options)
        agent.listen()
        words = {"agent": agent.id, "socket": agent.socket_path, "pid": os.getpid()}
        ready(json.dumps(words).encode() + b"\n")
        listens = True
        agent.run()
        code = 0
    except BaseException:  # noqa: BLE001 - the last thing this process does is to say why
        traceback.print_exc()
        if not listens:
            failed()
    finally:
        sys.stderr.flush()
        os._exit(code)
