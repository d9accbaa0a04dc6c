"""The launcher's side of the backup: starts its process, asks it, and starts another when it dies.

The listening socket stays here, so a new process has the old one's address: workers connect again by
themselves, and what they push next seeds it. Training does not wait for any of this.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from runtime.control import wire

_ANSWER_S = 30.0
_WRITE_S = 3600.0
_ATTEMPTS = 3  # at a request that a process dies over
# A process that died younger than this is started again only after a while, longer each time.
_YOUNG_S = 5.0
_LONGEST_REST_S = 10.0


@dataclass(frozen=True)
class BackupStatus:
    """What is known of the backup: the newest whole step, and memory held now and at most."""

    latest: int | None = None
    needs_state: bool = True
    size_bytes: int = 0
    peak_bytes: int = 0
    restarts: int = 0


class BackupPort(Protocol):
    """What the coordinator, the keeper and the digests ask of the backup."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Where workers send to; None where there is no backup."""

    @property
    def status(self) -> BackupStatus:
        """As last heard."""

    def expect(self, step: int) -> None:
        """The state before `step` is about to be pushed."""

    def go_back(self, generation: int) -> int | None:
        """The job goes back to the newest whole step, if there is one, and on from there in `generation`.

        Raises:
            OSError: the state that the job began with should be there, and is not.
        """

    def weights_digests(self, step: int) -> dict[int, str] | None:
        """SHA-256 of every layer's weights, if it stands at `step`."""


class BackupLostError(OSError):
    """The backup's process died over a request."""


class BackupProcess:
    """One job's backup. `origin`, if given, has the state and its step that a new process begins with."""

    def __init__(
        self,
        layers: int,
        token: bytes,
        folder: Path,
        follow: bool,
        origin: Callable[[], tuple[int, Mapping[int, bytes | bytearray]]] | None = None,
    ) -> None:
        self._layers, self._token, self._follow, self._origin = layers, token, follow, origin
        self._folder = folder
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        address = self._listener.getsockname()
        self.address = str(address[0]), int(address[1])
        self.pid = 0
        self._floor = 0  # what belongs to earlier generations is not taken
        self._changed = threading.Condition()
        self._status = BackupStatus()
        self._closed = False
        self._numbers = itertools.count()
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._start()
        self._thread = threading.Thread(target=self._watch, name="backup-watch", daemon=True)
        self._thread.start()

    @property
    def status(self) -> BackupStatus:
        """As last heard."""
        return self._status

    def wait_for(self, step: int, timeout_s: float) -> bool:
        """Whether the state of `step`, or of a later one, is whole before `timeout_s` is over."""
        with self._changed:
            return self._changed.wait_for(lambda: (self._status.latest or 0) >= step, timeout_s)

    def expect(self, step: int) -> None:
        """The state before `step` is about to be pushed."""
        self._post({"do": "expect", "step": step})

    def go_back(self, generation: int) -> int | None:
        """See BackupPort."""
        self._floor = generation  # also of a process that is started only now
        for _ in range(_ATTEMPTS):
            if self._origin is not None:  # a new process that has only just begun will have it
                with self._changed:
                    self._changed.wait_for(lambda: self._status.latest is not None, _ANSWER_S)
            step: int | None = None
            try:
                step = self._ask({"do": "go back", "generation": generation}, _ANSWER_S)
            except BackupLostError:
                self._give_up()
            if step is not None or self._origin is None:
                return step
        raise BackupLostError("the backup is lost, and cannot be given the state that the job began with")

    def _give_up(self) -> None:
        """A process that does not answer must not answer later: another is started."""
        if self._process is not None:
            self._process.kill()

    def weights_digests(self, step: int) -> dict[int, str] | None:
        """SHA-256 of every layer's weights, if the backup stands at `step`."""
        with contextlib.suppress(BackupLostError):
            found = self._ask({"do": "digests", "step": step}, _ANSWER_S)
            return None if found is None else {int(layer): digest for layer, digest in found.items()}
        return None

    def restore(self, target: str | None, generation: int) -> int:
        """Hold nothing but the checkpoint at `target`, as read from there, and go on in `generation`.

        Returns its step, 0 without one.

        Raises:
            OSError: it could not be read.
        """
        self._floor = generation
        for _ in range(_ATTEMPTS):
            with self._changed:
                self._changed.wait_for(lambda: self._control is not None, _ANSWER_S)
            try:
                request = {"do": "restore", "target": target, "generation": generation}
                step: int = self._ask(request, _ANSWER_S)
                return step
            except BackupLostError:
                self._give_up()
        raise BackupLostError(f"the backup dies whenever it is to read {target or 'nothing'}")

    def write(
        self, target: str, seed: int, template: Mapping[str, Any], parameters: Sequence[Sequence[Any]]
    ) -> tuple[int, str] | None:
        """Write the newest state as a checkpoint; returns its step and place, None if there is no state.

        Raises:
            OSError: it could not be written.
        """
        request = {"do": "write", "target": target, "seed": seed, "template": dict(template)}
        found = self._ask(request | {"parameters": [list(p) for p in parameters]}, _WRITE_S)
        return None if found is None else (found[0], found[1])

    def close(self) -> None:
        """End the process; nothing is left."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            control = self._control
        if control is not None:
            with contextlib.suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
        self._thread.join(_ANSWER_S)
        self._listener.close()

    # ---- requests --------------------------------------------------------------------------------------

    def _post(self, request: Mapping[str, Any], number: int | None = None) -> None:
        line = json.dumps({"id": next(self._numbers) if number is None else number, **request})
        with self._changed:
            if self._control is not None:
                with contextlib.suppress(OSError):
                    self._control.sendall(line.encode() + b"\n")

    def _ask(self, request: Mapping[str, Any], timeout_s: float) -> Any:
        number = next(self._numbers)
        box: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self._changed:
            if self._control is None:
                raise BackupLostError("the backup's process is not there")
            self._answers[number] = box
        try:
            self._post(request, number)
            answer = box.get(timeout=timeout_s)
        except queue.Empty:
            raise BackupLostError(f"the backup did not answer for {timeout_s:g} s") from None
        finally:
            with self._changed:
                self._answers.pop(number, None)
        if "lost" in answer:
            raise BackupLostError("the backup's process died")
        if "error" in answer:
            raise OSError(answer["error"])
        return answer["result"]

    # ---- the process -----------------------------------------------------------------------------------

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        fds = (theirs.fileno(), self._listener.fileno())
        command = [sys.executable, "-P", "-m", "parcae_cli.backup"]
        self._folder.mkdir(parents=True, exist_ok=True)
        with theirs, (self._folder / "backup.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--control-fd", str(fds[0]), "--listen-fd", str(fds[1])],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self.pid = self._process.pid
        about = {"layers": self._layers, "token": self._token.hex(), "follow": self._follow}
        about["floor"] = self._floor
        with contextlib.suppress(OSError):
            ours.sendall(json.dumps(about).encode() + b"\n")
        with self._changed:
            self._control = ours
            self._changed.notify_all()
            if self._closed:
                ours.shutdown(socket.SHUT_RDWR)
        if self._origin is not None:
            threading.Thread(target=self._bring_origin, name="backup-origin", daemon=True).start()

    def _bring_origin(self) -> None:
        assert self._origin is not None
        with contextlib.suppress(OSError, ValueError):
            step, layers = self._origin()
            with wire.connect(*self.address, _ANSWER_S) as sock:
                for layer, blob in layers.items():
                    wire.put(sock, layer, step, memoryview(blob), self._token, self._floor)

    def _watch(self) -> None:
        deaths = 0
        while True:
            began_s = time.monotonic()
            self._read()
            assert self._process is not None
            self._process.kill()
            self._process.wait()
            with self._changed:
                deaths = deaths + 1 if time.monotonic() - began_s < _YOUNG_S else 0
                rest_s = min(_LONGEST_REST_S, 0.1 * 2**deaths) if deaths else 0.0
                if self._closed or self._changed.wait_for(lambda: self._closed, rest_s):
                    return
            self._start()

    def _read(self) -> None:
        """Take what the process says until its end."""
        assert self._control is not None
        control = self._control
        with contextlib.suppress(OSError, ValueError), control.makefile("rb") as lines:
            for line in lines:
                self._hear(json.loads(line))
        with self._changed:
            self._control = None
            control.close()
            lost = BackupStatus(peak_bytes=self._status.peak_bytes, restarts=self._status.restarts + 1)
            self._status = self._status if self._closed else lost
            for box in self._answers.values():
                box.put({"lost": True})
            self._changed.notify_all()

    def _hear(self, message: dict[str, Any]) -> None:
        with self._changed:
            if "latest" in message:
                size_bytes = int(message["bytes"])
                self._status = BackupStatus(
                    message["latest"],
                    message["needs_state"],
                    size_bytes,
                    max(size_bytes, self._status.peak_bytes),
                    self._status.restarts,
                )
                self._changed.notify_all()
            elif message["id"] in self._answers:
                self._answers[message["id"]].put(message)


class NoBackup:
    """`--backup none`: after the loss of every holder of a stage the job begins anew."""

    address = None
    status = BackupStatus()

    def expect(self, step: int) -> None:
        """Nothing comes."""

    def go_back(self, generation: int) -> int | None:
        """There is none."""
        return None

    def weights_digests(self, step: int) -> dict[int, str] | None:
        """There are none."""
        return None

    def wait_for(self, step: int, timeout_s: float) -> bool:
        """Nothing comes."""
        return False

    def write(
        self, target: str, seed: int, template: Mapping[str, Any], parameters: Sequence[Sequence[Any]]
    ) -> tuple[int, str] | None:
        """There is nothing to write."""
        return None

    def restore(self, target: str | None, generation: int) -> int:
        """Nothing is held."""
        return 0

    def close(self) -> None:
        """Nothing runs."""
