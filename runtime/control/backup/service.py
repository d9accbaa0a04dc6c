"""The backup's process: a Backup at one end of a control socket, whose other end the launcher holds.

JSON lines. The first one to come says what to be; the others are requests, `{"id", "do", ...}`, answered by
`{"id", "result"}` or `{"id", "error"}`. News of what is held go out as `{"latest", "needs_state", "bytes"}`.
The end of the socket is the end of the process.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any

from runtime.control.backup.checkpoint import Checkpoint, Parameter
from runtime.control.backup.checkpoint_target import target_of
from runtime.control.backup.server import Backup
from runtime.control.backup.stores import PushedCopies


class BackupService:
    """Obeys the launcher."""

    def __init__(self, control: socket.socket, listener: socket.socket) -> None:
        self._control, self._lines = control, control.makefile("rb")
        self._sending = threading.Lock()
        first = json.loads(self._lines.readline())
        token = bytes.fromhex(first["token"])
        layers, follow, floor = int(first["layers"]), bool(first["follow"]), int(first["floor"])
        self._backup = Backup(layers, token, listener, follow, floor)

    def run(self) -> None:
        """Serve until the launcher is gone."""
        threading.Thread(target=self._tell, name="backup-news", daemon=True).start()
        for line in self._lines:
            request = json.loads(line)
            if request["do"] == "write":  # takes long; the others must not wait for it
                threading.Thread(target=self._obey, args=(request,), daemon=True).start()
            else:
                self._obey(request)

    def _obey(self, request: Mapping[str, Any]) -> None:
        store = self._backup.store
        result: Any = None
        match request["do"]:
            case "expect":
                store.expect(request["step"])
            case "go back":
                result = store.go_back(request["generation"])
            case "restore":
                try:
                    result = self._restore(request["target"], request["generation"])
                except Exception as error:  # noqa: BLE001 - the launcher says it
                    self._send({"id": request["id"], "error": f"{type(error).__name__}: {error}"})
                    return
            case "digests":
                result = self._backup.weights_digests(request["step"])
            case "write":
                try:
                    result = self._write(request)
                except Exception as error:  # noqa: BLE001 - the launcher says it; training goes on
                    self._send({"id": request["id"], "error": f"{type(error).__name__}: {error}"})
                    return
        self._send({"id": request["id"], "result": result})

    def _write(self, request: Mapping[str, Any]) -> list[Any] | None:
        """Write the newest state as a checkpoint: its step and where it is."""
        copy = self._backup.store.copy()
        if copy is None:
            return None
        step, layers = copy
        parameters = [Parameter(p[0], p[1], tuple(p[2])) for p in request["parameters"]]
        target = target_of(request["target"])
        content = Checkpoint(step, request["seed"], request["template"], layers)
        return [step, target.write(content, parameters)]

    def _restore(self, target: str | None, generation: int) -> int:
        """Hold what a checkpoint says and nothing else; its step, 0 without one."""
        store = self._backup.store
        if not isinstance(store, PushedCopies):
            raise ValueError("only a backup of pushed states can go back to a checkpoint")
        if target is None:
            store.restore(0, {}, generation)
            return 0
        start = target_of(target).read()
        store.restore(start.step, start.layers, generation)
        return start.step

    def _tell(self) -> None:
        store = self._backup.store
        told: dict[str, Any] = {}

        def news() -> dict[str, Any]:
            return {"latest": store.latest(), "needs_state": store.needs_state, "bytes": store.size_bytes}

        while True:
            with store.changed:
                store.changed.wait_for(lambda: news() != told, timeout=1.0)  # noqa: B023 - called here only
                now = news()
            if now != told:
                told = now
                self._send(now)

    def _send(self, message: Mapping[str, Any]) -> None:
        with self._sending:
            try:
                self._control.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                os._exit(0)


def main(control_fd: int, listener_fd: int) -> None:
    """Run on open descriptors. Never returns: the process ends with the control socket."""
    try:
        BackupService(socket.socket(fileno=control_fd), socket.socket(fileno=listener_fd)).run()
    finally:
        os._exit(0)
