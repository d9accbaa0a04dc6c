"""A node's own way from standard input and output to the agent's socket.

For nodes whose sshd does not forward sockets (`AllowStreamLocalForwarding no`). Standard library only.
"""

from __future__ import annotations

import os
import selectors
import socket
import sys
from pathlib import Path

from cloud.processes import short_path

BRIDGED = b"attached\n"
_CHUNK_BYTES = 262144


def attach(path: Path) -> int:
    """Carry bytes both ways until one side ends; the exit code is 1 if nobody listens on `path`.

    Both ends always read, whatever they write, so writes may block here.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        with short_path(path) as name:
            connection.connect(name)
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.stderr)
        return 1
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(connection, selectors.EVENT_READ)
    try:
        _write(BRIDGED)
        while True:
            for key, _ in selector.select():
                if key.fileobj is connection:
                    data = connection.recv(_CHUNK_BYTES)
                    _write(data)
                else:
                    data = os.read(0, _CHUNK_BYTES)
                    connection.sendall(data)
                if not data:
                    return 0
    except OSError:
        return 0  # one of the ends has gone


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
