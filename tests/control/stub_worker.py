"""A worker without an engine: speaks JSON lines on its control descriptor and obeys."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time


def main(control_fd: int) -> None:
    """Say hello, answer pings, echo, and follow orders until the agent's end closes."""
    control = socket.socket(fileno=control_fd)
    lines = control.makefile("rb")

    def say(message: dict[str, object]) -> None:
        control.sendall(json.dumps(message).encode() + b"\n")

    if os.environ.get("STUB_FAILS") == "1":
        raise SystemExit("told to fail at the start")
    print("stub worker up", flush=True)
    shown = ("RES_OPTIONS", "OMP_NUM_THREADS", "PARCAE_NODE", "HOME", "CUDA_VISIBLE_DEVICES", "LOCAL_RANK")
    say({"t": "hello", "pid": os.getpid(), "env": {name: os.environ.get(name) for name in shown}})
    for line in lines:
        message = json.loads(line)
        match message["t"]:
            case "ping":
                say({"t": "pong"})
            case "echo":
                say(message)
            case "many":
                for number in range(message["count"]):
                    say({"t": "number", "number": number})
            case "exit":
                sys.exit(message["code"])
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hang":  # deaf to the end of file too: only the thread that watches the agent can end this
                time.sleep(600)
            case "secrets":
                say({"t": "secrets", "names": sorted(os.environ)})
