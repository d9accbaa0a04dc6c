"""Workers as real processes on control sockets, driven message by message, without agents or SSH."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import queue
import secrets
import signal
import socket
import threading
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.control import messages

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
DEADLINE_S = 60.0
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["runtime.engine.worker"])


def tiny_template(**training: Any) -> dict[str, Any]:
    """The content of gpt-tiny's template, with other training numbers where given."""
    template: dict[str, Any] = tomllib.loads((TEMPLATES / "models" / "gpt-tiny.toml").read_text())
    template["training"].update({"mini_batch": 24, **training})
    return template


def _serve(control: socket.socket) -> None:
    os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")
    from runtime.engine.worker import main

    main(control.detach())


class WorkerHandle:
    """One worker process and the messages it has sent."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._ours, theirs = socket.socketpair()
        self.process = _context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self._set_aside: list[messages.Message] = []
        self.inbox: queue.Queue[messages.Message | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        hello = self.expect(messages.Hello)
        assert isinstance(hello, messages.Hello)
        self.hello = hello

    def send(self, message: messages.Message) -> None:
        """To the worker."""
        self._ours.sendall(json.dumps(messages.encode(message)).encode() + b"\n")

    def expect(self, kind: type[messages.Message]) -> Any:
        """The next message of this kind; others are kept for later, but a failure is one."""
        for message in self._set_aside:
            if isinstance(message, kind):
                self._set_aside.remove(message)
                return message
        while True:
            message = self.inbox.get(timeout=DEADLINE_S)
            if isinstance(message, kind):
                return message
            died = message is None or isinstance(message, messages.Failed)
            assert not died, f"{self.node}: {message} came, {kind.__name__} was expected"
            self._set_aside.append(message)

    def kill(self) -> None:
        """SIGKILL, by pid."""
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(DEADLINE_S)

    def _read(self) -> None:
        with contextlib.suppress(ConnectionResetError), self._ours.makefile("rb") as lines:
            for line in lines:
                self.inbox.put(messages.decode(json.loads(line)))
        self.inbox.put(None)


class Crew:
    """Some configured workers, and what a coordinator would tell them."""

    def __init__(
        self,
        names: Sequence[str],
        template: dict[str, Any] | None = None,
        seed: int = 1,
        faults: Sequence[dict[str, Any]] = (),
        backup: tuple[str, int] | None = None,
        token: str | None = None,
        exact: bool = True,
    ) -> None:
        self.workers = {name: WorkerHandle(name) for name in names}
        self.configure(template, seed, faults, backup, token, exact)

    def configure(
        self,
        template: dict[str, Any] | None = None,
        seed: int = 1,
        faults: Sequence[dict[str, Any]] = (),
        backup: tuple[str, int] | None = None,
        token: str | None = None,
        exact: bool = True,
    ) -> None:
        """Tell every worker what to train; may be done again, with something else."""
        self.template = template or tiny_template()
        self.layers = int(self.template["gpt"]["layers"]) + 2
        self.token = token or secrets.token_hex(16)
        for name, worker in self.workers.items():
            worker.send(
                messages.Configure(
                    name,
                    self.template,
                    seed,
                    [],
                    self.token,
                    list(backup) if backup else None,
                    exact,
                    list(faults),
                )
            )
        for worker in self.workers.values():
            configured = worker.expect(messages.Configured)
            assert not configured.error

    def cuts(self, stages: int) -> list[list[int]]:
        """Even stages."""
        edges = [round(i * self.layers / stages) for i in range(stages + 1)]
        return [list(range(edges[i], edges[i + 1])) for i in range(stages)]

    def prepare(
        self,
        generation: int,
        pipelines: int,
        stages: int,
        names: Sequence[str],
        copies: Mapping[str, list[list[Any]]] | None = None,
    ) -> None:
        """Name k gets pipeline k // stages, stage k % stages, and copies [layer, address] pairs ahead."""
        first = self.workers[names[0]].hello
        for index, name in enumerate(names):
            self.workers[name].send(
                messages.Prepare(
                    generation,
                    pipelines,
                    [index // stages, index % stages],
                    self.cuts(stages),
                    [first.host, first.store_port],
                    (copies or {}).get(name, []),
                )
            )

    def prepared(self, names: Sequence[str]) -> None:
        """Wait until the groups stand."""
        for name in names:
            self.workers[name].expect(messages.Prepared)

    def address(self, name: str) -> list[Any]:
        """Where the worker's state can be fetched."""
        hello = self.workers[name].hello
        return [hello.host, hello.transfer_port]

    def from_seed(self, generation: int, stages: int, names: Sequence[str]) -> None:
        """The first step of all: every layer is made from the seed."""
        for index, name in enumerate(names):
            fetches = [[layer, "seed"] for layer in self.cuts(stages)[index % stages]]
            self.workers[name].send(messages.Switch(generation, 0, fetches))

    def votes(self, names: Sequence[str]) -> list[messages.Vote]:
        """Everybody's vote for the step."""
        return [self.workers[name].expect(messages.Vote) for name in names]

    def commit(
        self,
        generation: int,
        step: int,
        names: Sequence[str],
        proceed: bool,
        push: bool = False,
        stream: bool = False,
    ) -> None:
        """Decide the step, without clipping."""
        for name in names:
            self.workers[name].send(messages.Commit(generation, step, 1.0, proceed, push, stream))

    def train(self, generation: int, first: int, steps: int, names: Sequence[str]) -> list[float]:
        """Commit steps first..first+steps-1; the last without going on. Returns the losses."""
        losses = []
        for step in range(first, first + steps):
            reported = sorted(pair for vote in self.votes(names) for pair in vote.losses)
            losses.append(sum(loss for _, loss in reported) / len(reported))
            self.commit(generation, step, names, proceed=step + 1 < first + steps)
        return losses

    def digests(self, names: Sequence[str]) -> dict[int, str]:
        """Each layer's digest; replicas must agree."""
        found: dict[int, str] = {}
        for name in names:
            self.workers[name].send(messages.Digest())
            for layer, digest in self.workers[name].expect(messages.Digests).layers:
                assert found.setdefault(layer, digest) == digest, f"replicas of layer {layer} differ"
        return found

    def close(self) -> None:
        """End every worker."""
        for worker in self.workers.values():
            worker.kill()
