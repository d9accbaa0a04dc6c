"""How a node's agent is born on a machine of many nodes: by a process that has loaded everything already.

Whoever asks is a Python that lives for this alone, so it loads next to nothing.
"""

from __future__ import annotations

import os
import sys

# What `socket` adds to this takes 6 ms to load.
from _socket import AF_UNIX, SCM_RIGHTS, SOL_SOCKET, socket

ZYGOTE = "PARCAE_AGENT_ZYGOTE"  # the environment's name for the path of the zygote's socket


def start_agent(arguments: list[str]) -> int | None:
    """Have the zygote do what `python -m parcae_cli.agent ARGUMENTS` would do here, on the same descriptors.

    Returns its exit code; None: there is no zygote (any more).
    """
    if ZYGOTE not in os.environ:
        return None
    folder, name = os.path.split(os.environ[ZYGOTE])
    here = os.getcwd()  # noqa: PTH109 - pathlib is slow to load
    request = {"agent": arguments, "folder": here, "environment": dict(os.environ)}
    text = repr(request).encode() + b"\n"
    standard = b"".join(descriptor.to_bytes(4, sys.byteorder) for descriptor in (0, 1, 2))
    connection = socket(AF_UNIX)
    try:
        near = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)  # as `cloud.processes.short_path`
        connection.connect(f"/proc/self/fd/{near}/{name}")
        connection.sendmsg([text[:1]], [(SOL_SOCKET, SCM_RIGHTS, standard)])
        connection.sendall(text[1:])
        code = connection.recv(8)
    except OSError:
        return None
    finally:
        connection.close()
    return int(code) if code else None
