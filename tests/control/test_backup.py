"""The in-memory backup: whole copies only, bounded memory, for its own job only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from runtime.control import wire
from runtime.control.backup import Backup
from runtime.control.training import Pace, PushSchedule

TOKEN = b"t" * wire.TOKEN_BYTES


@pytest.fixture
def backup() -> Iterator[Backup]:
    backup = Backup(layers=2, token=TOKEN)
    yield backup
    backup.close()


def put(backup: Backup, step: int, *layers: int) -> None:
    with wire.connect(backup.host, backup.port, 5) as sock:
        for layer in layers:
            wire.put(sock, layer, step, memoryview(bytes([layer, step]) * 6), TOKEN)


def test_a_step_counts_once_every_layer_of_it_is_here(backup: Backup) -> None:
    """Half a copy is no copy."""
    put(backup, 10, 0)
    assert backup.latest() is None
    put(backup, 10, 1)
    assert backup.latest() == 10
    put(backup, 20, 0)
    assert backup.latest() == 10


def test_what_was_put_comes_back(backup: Backup) -> None:
    """Bytes in, the same bytes out; the digest is of the first third, the weights."""
    put(backup, 3, 0, 1)
    view = bytearray(12)
    with wire.connect(backup.host, backup.port, 5) as sock:
        wire.get_into(sock, 1, 3, memoryview(view), TOKEN)
    assert view == bytes([1, 3]) * 6
    assert backup.weights_digest(3, 1) == hashlib.sha256(view[:4]).hexdigest()


def test_memory_is_bounded(backup: Backup) -> None:
    """Two whole copies and the one that is arriving; late pieces of older ones are dropped."""
    for step in range(10, 60, 10):
        put(backup, step, 0, 1)
        assert backup.size_bytes <= 2 * 2 * 12
    put(backup, 20, 0)
    assert backup.size_bytes == 2 * 2 * 12


def test_a_layer_that_is_not_here_is_refused(backup: Backup) -> None:
    """The receiver learns it at once and does not wait."""
    put(backup, 3, 0, 1)
    with (
        wire.connect(backup.host, backup.port, 5) as sock,
        pytest.raises(wire.TransferError, match="0 bytes"),
    ):
        wire.get_into(sock, 1, 4, memoryview(bytearray(12)), TOKEN)


def test_another_job_gets_nothing(backup: Backup) -> None:
    """A wrong token ends the connection."""
    put(backup, 3, 0, 1)
    with wire.connect(backup.host, backup.port, 5) as sock, pytest.raises(OSError):
        wire.get_into(sock, 1, 3, memoryview(bytearray(12)), b"x" * wire.TOKEN_BYTES)


def test_a_copy_that_breaks_off_is_never_seen(backup: Backup) -> None:
    """The sender dies in the middle of a layer."""
    put(backup, 5, 0)
    with wire.connect(backup.host, backup.port, 5) as sock:
        wire.send_request(sock, wire.Request(wire.PUT, 1, 5, 12), TOKEN)
        sock.sendall(b"half")
    put(backup, 4, 0, 1)
    assert backup.latest() == 4


def test_steps_after_a_rollback_are_forgotten(backup: Backup) -> None:
    """What belongs to steps that will be done again does not linger."""
    put(backup, 10, 0, 1)
    put(backup, 20, 0)
    backup.forget_after(10)
    assert backup.latest() == 10
    assert backup.size_bytes == 24


def test_a_copy_is_sent_only_when_the_last_one_has_arrived() -> None:
    """A slow backup is not flooded; a sender that died does not stop the copies for ever."""
    pushes = PushSchedule(every=10)
    assert not pushes.due(9, None)
    assert pushes.due(10, None)
    assert not pushes.due(20, None)
    assert pushes.due(30, 10)
    assert not pushes.due(40, 10)
    assert pushes.due(90, 10)
    pushes.reset(30)
    assert pushes.due(40, 30)


def test_a_pause_is_what_a_change_took_beyond_an_ordinary_step() -> None:
    """Steps of 1 s, then one of 4 s in a new generation: the pause is 3 s and does not count as ordinary."""
    pace = Pace()
    assert pace.commit(10.0, fresh=True) == 0.0
    for now_s in (11.0, 12.0, 13.0):
        pace.commit(now_s, fresh=False)
    assert pace.commit(17.0, fresh=True) == 3.0
    assert pace.ordinary_s == 1.0
    assert pace.commit(17.5, fresh=True) == 0.0
