"""What workers send to the backup: the same bits that they hold, without holding up the step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from runtime.control import wire
from runtime.control.backup import adamw
from runtime.control.backup.server import Backup
from runtime.engine.backup import BackupSender
from runtime.engine.state import LayerState, bytes_of, update_on_device
from runtime.engine.transfer import Address
from tests.engine.driver import Crew

TOKEN = b"t" * wire.TOKEN_BYTES
OPTIMISER = wire.AdamW(1e-3, 0.01, 0.9, 0.95, 1e-8)


@pytest.fixture
def following() -> Iterator[Backup]:
    backup = Backup(layers=1, token=TOKEN, follow=True)
    yield backup
    backup.close()


@pytest.mark.parametrize("size", [1, 7, 100_003])
def test_the_optimiser_gives_the_same_bits_without_torch(size: int) -> None:
    """Gradients of every magnitude, clipped: state and copy stay equal, bit for bit."""
    layer = LayerState(0, nn.Linear(size, 1, bias=False, device="meta"), True, torch.device("cpu"))
    layer.buffer[0].normal_(generator=torch.Generator().manual_seed(1))
    copy, plain = layer.buffer.numpy().copy(), layer.buffer.clone()
    chance = np.random.default_rng(2)
    for step in range(4):
        scales = 10.0 ** chance.integers(-30, 4, size)
        layer.bind(torch.from_numpy(chance.normal(size=size) * scales))
        gradient = layer.scaled(0.37)
        layer.update(step, gradient, OPTIMISER)
        adamw.apply(copy, gradient.numpy(), step, OPTIMISER)
        update_on_device(plain, gradient, step, OPTIMISER)
        assert copy.tobytes() == layer.buffer.numpy().tobytes()
    assert torch.allclose(plain, layer.buffer, rtol=1e-3, atol=1e-6)  # torch's root does not round correctly


def test_streamed_gradients_make_the_backup_equal(following: Backup) -> None:
    """State once, then gradients only: after each step the backup holds the worker's bits."""
    layer = LayerState(0, nn.Linear(40_000, 1, bias=False, device="meta"), True, torch.device("cpu"))
    layer.buffer[0].normal_(generator=torch.Generator().manual_seed(1))
    sender = BackupSender(Address(following.host, following.port), TOKEN)
    following.store.expect(0)
    sender.push(0, {0: layer.buffer})
    for step in range(5):
        layer.bind(torch.randn(layer.size, dtype=torch.float64))
        sender.settle()
        gradient = layer.scaled(1.0)
        layer.update(step, gradient, OPTIMISER)
        sender.stream(0, step, gradient, OPTIMISER)
        sender.hold(lambda: False)
    assert following.wait_for(5, 20)
    assert bytes(following.store.get(5, 0) or b"") == bytes(bytes_of(layer.buffer))
    assert sender.take_cost_s() > 0


def test_a_state_that_is_being_sent_is_of_one_step() -> None:
    """The optimiser runs while half of the layer is on its way: what arrives is from before it.

    So it is with every state, though the copy of one is made in the memory of the last one's.
    """
    backup = Backup(layers=1, token=TOKEN)
    buffer = torch.zeros(3, 1_000_000)
    sender = BackupSender(Address(backup.host, backup.port), TOKEN)
    try:
        for step in (3, 4, 5):
            sender.push(step, {0: buffer})
            sender.settle()
            buffer.fill_(step)
            assert backup.wait_for(step, 20)
            copy = backup.store.get(step, 0)
            assert copy is not None
            assert bytes(copy) == bytes(bytes_of(torch.full_like(buffer, step - 1 if step > 3 else 0)))
            backup.store.expect(step + 1)
            with sender._changed:
                assert sender._changed.wait_for(lambda: sender._sending is None, 20)
            assert len(sender._spare) == 1
        sender.enter(7, pushes=False)
        assert sender._spare == []
    finally:
        backup.close()


def test_a_backup_that_does_not_answer_holds_nobody_up_twice() -> None:
    """A vote waits for a silent backup for a moment, the next one not at all."""
    silent = wire.socket.create_server(("127.0.0.1", 0))
    sender = BackupSender(Address(*silent.getsockname()), TOKEN)
    gradient = torch.zeros(3_000_000)
    try:
        sender.stream(0, 0, gradient, OPTIMISER)
        sender.hold(lambda: False)
        first_s = sender.take_cost_s()
        sender.hold(lambda: False)
        assert sender.take_cost_s() < first_s / 2
    finally:
        silent.close()


def test_a_worker_pair_streams_what_it_trains() -> None:
    """Two real stages: the backup goes with them, and ends with the weights that they report."""
    token = "5a" * 16
    backup = Backup(layers=8, token=bytes.fromhex(token), follow=True)
    names = ["a", "b"]
    crew = Crew(names, backup=(backup.host, backup.port), token=token)
    try:
        crew.prepare(1, 1, 2, names)
        crew.prepared(names)
        crew.from_seed(1, 2, names)
        for step in range(4):
            crew.votes(names)
            if step == 0:
                backup.store.expect(1)
            crew.commit(1, step, names, proceed=step < 3, push=step == 0, stream=step > 0)
        assert backup.wait_for(4, 20)
        assert backup.weights_digests(4) == crew.digests(names)
    finally:
        crew.close()
        backup.close()
