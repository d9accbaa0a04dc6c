"""The worker process: obeys the coordinator, lives through any number of generations.

Two threads matter. The reader takes messages from the control socket; it starts to build a prepared
generation at once and, on an abort, wakes the main thread wherever it waits. The main thread does everything
else in the order of the messages, so a commit that precedes an abort is always applied.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from runtime.control import messages
from runtime.control.data_rules import CorpusError
from runtime.control.data_set import found_on_node
from runtime.control.node.priority import boot_politely
from runtime.engine.ahead import AheadCopy
from runtime.engine.backup import BackupSender
from runtime.engine.data import Corpus
from runtime.engine.faults import FaultInjector
from runtime.engine.generation import Generation, Graveyard, compute_device
from runtime.engine.groups import StoreServer
from runtime.engine.state import LayerState
from runtime.engine.trainer import Trainer
from runtime.engine.transfer import NO_TRAFFIC, Address, FetchError, StateServer, Traffic, fetch_layers
from runtime.engine.waits import AbandonedError
from runtime.planning.errors import InputError
from runtime.planning.model import parse_model


class ControlChannel:
    """JSON lines to and from the agent."""

    def __init__(self, control_fd: int) -> None:
        self._socket = socket.socket(fileno=control_fd)
        self._lines = self._socket.makefile("rb")
        self._lock = threading.Lock()

    def send(self, wire: Mapping[str, Any]) -> None:
        """Write one object; from any thread."""
        line = json.dumps(wire, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._socket.sendall(line)

    def receive(self) -> dict[str, Any] | None:
        """The next object, or None when the agent is gone."""
        try:
            line = self._lines.readline()
        except OSError:
            return None  # the agent died with words of ours unread
        if not line.endswith(b"\n"):
            return None
        parsed: dict[str, Any] = json.loads(line)
        return parsed


class Worker:
    """One GPU's trainer."""

    def __init__(self, channel: ControlChannel, host: str) -> None:
        self._channel, self._host = channel, host
        self._inbox: queue.SimpleQueue[messages.Message] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the four below, which the reader and the main thread share
        self._prepared: dict[int, Generation] = {}
        self._copy: AheadCopy | None = None
        self._aborted_until = -1
        self._current: Generation | None = None
        self._graveyard = Graveyard()
        self._faults = FaultInjector("", ())
        self._trainer: Trainer | None = None
        self._configured: messages.Configured | None = None
        self._sender: BackupSender | None = None
        self._backup: Address | None = None
        self._server = StateServer(host, self._point)
        self._store = StoreServer(host)

    def run(self) -> None:
        """Serve until the coordinator says stop or the agent goes away."""
        self._send(messages.Hello(os.getpid(), self._host, self._store.port, self._server.address.port))
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while True:
            message = self._inbox.get()
            try:
                self._obey(message)
            except AbandonedError:
                continue  # the abort itself is next in the inbox
            except CorpusError as error:
                self._send(messages.Configured(0, "", error=str(error)))  # no other node could go on either
            except (RuntimeError, OSError) as error:
                generation = self._current.number if self._current else -1
                source = [error.source.host, error.source.port] if isinstance(error, FetchError) else []
                self._send(messages.Failed(generation, f"{type(error).__name__}: {error}"[:300], source))

    def _read(self) -> None:
        try:
            while (wire := self._channel.receive()) is not None:
                if wire.get("t") == "ping":
                    self._channel.send({"t": "pong"})
                    continue
                message = messages.decode(wire)
                if isinstance(message, messages.Prepare):
                    self._prepare(message)
                    continue
                if isinstance(message, messages.Cancel):
                    self._cancel(message.generation)
                    continue
                if isinstance(message, messages.Abort):
                    self._abandon(message.generation)
                if isinstance(message, messages.Adopt):
                    self._abandon(message.until)
                self._inbox.put(message)
        finally:
            os._exit(3)  # nobody commands this worker any more: it must not train on

    def _obey(self, message: messages.Message) -> None:
        match message:
            case messages.Configure():
                self._configure(message)
            case messages.Switch():
                self._switch(message)
            case messages.Commit():
                self._commit(message)
            case messages.Abort():
                self._aborted(message)
            case messages.Adopt():
                self._adopt(message)
            case messages.Release():
                self._release()
            case messages.Digest():
                assert self._trainer is not None
                if message.push and self._sender is not None:
                    self._sender.push(self._step, {i: self._trainer.layers[i].buffer for i in message.push})
                self._send(messages.Digests(self._step, self._trainer.digests()))
            case messages.Stop():
                os._exit(0)

    @property
    def _step(self) -> int:
        return self._trainer.step if self._trainer else 0

    def _point(self, name: str) -> None:
        self._faults.at(self._step, name)

    def _send(self, message: messages.Message) -> None:
        self._channel.send(messages.encode(message))

    def _configure(self, message: messages.Configure) -> None:
        try:
            load = partial(self._load, message)
            trainer, corpus_digest = boot_politely(load) if "PARCAE_ZYGOTE" in os.environ else load()
        except (InputError, CorpusError) as error:
            self._send(messages.Configured(0, "", error=str(error)))
            return
        token = bytes.fromhex(message.token)
        self._faults = FaultInjector(message.node, message.faults)
        self._faults.at(0, "start")
        self._trainer = trainer
        self._server.token = token
        if message.backup is not None:
            self._backup = Address(message.backup[0], message.backup[1])
            self._sender = BackupSender(self._backup, token, self._point)
        self._configured = messages.Configured(trainer.samples, corpus_digest, trainer.parameters())
        self._send(self._configured)

    def _load(self, message: messages.Configure) -> tuple[Trainer, str]:
        model = parse_model(message.model, source=str(message.model.get("name")))
        assert model.gpt is not None
        corpus = Corpus([*map(found_on_node, message.corpus)], model.gpt.seq, model.gpt.vocab)
        # On a GPU exact sums cost too much memory, and its kernels would not keep the promise anyway.
        exact = message.exact and compute_device().type == "cpu"
        trainer = Trainer(model, message.seed, corpus, exact, self._point)
        trainer.warm_up()
        return trainer, corpus.digest()

    # ---- generations -----------------------------------------------------------------------------------

    def _prepare(self, message: messages.Prepare) -> None:
        """In the reader thread: build beside whatever is running."""

        def prepared(seconds: float) -> None:
            self._point("prepare")
            self._send(messages.Prepared(message.generation, round(seconds, 4)))

        with self._lock:
            if message.generation <= self._aborted_until:
                return
            trainer, running = self._trainer, self._current
            assert trainer is not None
            superseded, old = list(self._prepared.values()), self._copy
            room = partial(trainer.make_room, running=running)
            self._prepared = {message.generation: Generation(message, self._host, prepared, room)}
            self._copy = self._copy_ahead(message, trainer) if message.copies else None
        for generation in superseded:
            self._graveyard.bury(generation)
        if old is not None:
            old.stop()

    def _copy_ahead(self, message: messages.Prepare, trainer: Trainer) -> AheadCopy:
        def copied(bytes_ahead: int, seconds: float) -> None:
            self._send(messages.Copied(message.generation, bytes_ahead, round(seconds, 5)))

        return AheadCopy(
            message.generation,
            {layer: Address(host, port) for layer, (host, port) in message.copies},
            self._server.token,
            partial(trainer.new_layer, from_seed=False),
            trainer.replay,
            self._point,
            copied,
        )

    def _abandon(self, until: int) -> None:
        """In the reader thread: wake the main thread wherever it waits."""
        with self._lock:
            self._aborted_until = max(self._aborted_until, until)
            dead = [g for number, g in self._prepared.items() if number <= until]
            self._prepared = {n: g for n, g in self._prepared.items() if n > until}
            if self._current is not None and self._current.number <= until:
                # Not buried yet: a commit decided before the abort may still wait in the inbox.
                self._current.abandon()
        if self._sender is not None:
            self._sender.wake()
        for generation in dead:
            self._graveyard.bury(generation)

    def _cancel(self, number: int) -> None:
        """In the reader thread: this generation will not be; the running one goes on."""
        with self._lock:
            generation = self._prepared.pop(number, None)
            copy = self._copy
            if copy is not None and copy.generation == number:
                self._copy = None
        if generation is not None:
            self._graveyard.bury(generation)
        if copy is not None and copy.generation == number:
            copy.stop()

    def _leave(self) -> None:
        with self._lock:
            old, self._current = self._current, None
        if old is not None:
            self._graveyard.bury(old)

    def _aborted(self, message: messages.Abort) -> None:
        self._leave()
        self._faults.at(self._step, "abort")
        with self._lock:
            copy, self._copy = self._copy, None
        if copy is not None and self._trainer is not None:
            self._trainer.rescue(*copy.rescue())
            self._server.publish(self._trainer.step, self._trainer.sources())
        holds = sorted(self._trainer.layers) if self._trainer else []
        self._send(messages.Aborted(message.generation, self._step, holds))

    def _adopt(self, message: messages.Adopt) -> None:
        configure = messages.decode(message.configure)
        assert isinstance(configure, messages.Configure)
        generation, trainer = self._current, self._trainer
        if trainer is None or self._configured is None:
            self._aborted(messages.Abort(message.until))
            self._configure(configure)
            return
        voted = generation is not None and generation.number == message.generation
        if generation is not None and voted and trainer.step == message.step:
            # The step was decided, and the word of it died with the coordinator.
            self._apply(trainer, generation, message.scale)
        if configure.backup is not None and self._sender is not None:
            self._backup = Address(configure.backup[0], configure.backup[1])
            self._sender.move_to(self._backup)
        self._aborted(messages.Abort(message.until))
        self._send(self._configured)

    def _release(self) -> None:
        self._leave()
        self._server.withdraw()
        if self._trainer is not None:
            self._trainer.layers.clear()

    def _take(self, number: int) -> tuple[Generation, AheadCopy | None, list[torch.Tensor]]:
        """A prepared generation, what copies its state, and the memory that the one before it leaves."""
        with self._lock:
            generation = self._prepared.pop(number, None)
            if generation is None or number <= self._aborted_until:
                raise AbandonedError
            old, self._current = self._current, generation
            copy = self._copy
            left = [] if old is None or old.waiter.abandoned else [*old.gradients.values()]
        if old is not None:
            self._graveyard.bury(old)
        return generation, copy, left

    def _switch(self, message: messages.Switch) -> None:
        trainer = self._trainer
        assert trainer is not None
        generation, copy, left = self._take(message.generation)
        self._faults.at(message.step, "switch")
        generation.groups()
        began = time.monotonic()
        arrived: dict[int, LayerState] = {}
        ahead = copied = 0
        if copy is not None:
            ahead = copy.bytes_moved
            arrived = generation.waiter.call(partial(copy.take, message.step))
            copied = copy.bytes_moved - ahead
        fetched = self._fetch(generation, message, arrived)
        fetch_s = time.monotonic() - began
        generation.waiter.check()
        if self._sender is not None:
            self._sender.enter(message.generation, generation.pipeline == 0)
            if message.step != trainer.step:
                self._sender.clear()
        trainer.enter(generation, message.step, arrived, left)
        with self._lock:
            self._copy = None  # until here an abort would have saved what was copied
        self._server.publish(trainer.step, trainer.sources())
        ahead_s = copy.copied_s if copy is not None else 0.0
        self._compute(generation, Traffic(copied + fetched, round(fetch_s, 5), ahead, round(ahead_s, 5)))

    def _fetch(self, generation: Generation, message: messages.Switch, arrived: dict[int, LayerState]) -> int:
        """Complete `arrived`, the layers that this worker needs: in memory of their own until all are whole.

        Returns the number of bytes moved.
        """
        trainer = self._trainer
        assert trainer is not None
        wanted: list[tuple[int, Address]] = []
        for layer, source in message.fetches:
            if layer in arrived:
                continue
            arrived[layer] = trainer.new_layer(layer, from_seed=source == "seed")
            if source == "backup":
                assert self._backup is not None
                wanted.append((layer, self._backup))
            elif source != "seed":
                wanted.append((layer, Address(source[0], source[1])))
        if not wanted:
            return 0
        views = {layer: arrived[layer].incoming() for layer, _ in wanted}
        token = self._server.token
        moved = generation.waiter.call(lambda: fetch_layers(message.step, wanted, views, token, self._point))
        for layer, _ in wanted:
            arrived[layer].arrived()
        return moved

    def _compute(self, generation: Generation, traffic: Traffic = NO_TRAFFIC) -> None:
        trainer = self._trainer
        assert trainer is not None
        began = time.monotonic()
        vote = trainer.compute(generation)
        compute_s = time.monotonic() - began
        backup_s = 0.0
        if self._sender is not None:
            self._sender.hold(lambda: generation.waiter.abandoned)
            backup_s = self._sender.take_cost_s()
        generation.waiter.check()
        self._point("before_vote")
        vote = replace(vote, compute_s=round(compute_s, 5), backup_s=round(backup_s, 6))
        self._send(replace(vote, **asdict(traffic)))
        self._point("after_vote")

    def _commit(self, message: messages.Commit) -> None:
        generation, trainer = self._current, self._trainer
        assert generation is not None and trainer is not None and message.step == trainer.step
        self._point("commit")
        if not message.proceed and (copy := self._copy) is not None:
            copy.hurry()
        sender = self._sender if generation.pipeline == 0 else None
        self._apply(trainer, generation, message.scale, sender if message.stream else None)
        if message.push and sender is not None:
            sender.push(trainer.step, {i: trainer.layers[i].buffer for i in generation.layers})
        generation.waiter.check()
        if message.proceed:
            self._compute(generation)

    def _apply(
        self, trainer: Trainer, generation: Generation, scale: float, backup: BackupSender | None = None
    ) -> None:
        self._server.withdraw()
        if self._sender is not None:
            self._sender.settle()
        trainer.apply(generation, scale, self._server.followed, self._server.keep, backup)
        self._server.publish(trainer.step, trainer.sources())


def main(control_fd: int) -> None:
    """Run a worker on an open control socket. Never returns: the process ends with the control channel."""
    torch.set_num_threads(1)
    host = os.environ.get("PARCAE_ADDRESS", "127.0.0.1")
    Worker(ControlChannel(control_fd), host).run()
