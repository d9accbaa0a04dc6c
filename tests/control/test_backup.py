"""The in-memory backup: whole states only, bounded memory, for its own job only, replaced when it dies."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.control import wire
from runtime.control.backup import adamw
from runtime.control.backup.orders import BackupOrders
from runtime.control.backup.process import BackupProcess, BackupStatus
from runtime.control.backup.server import Backup
from runtime.control.backup.stores import MOST_AHEAD, FollowedState
from runtime.control.training.training import Pace
from runtime.planning.types import Layout

TOKEN = b"t" * wire.TOKEN_BYTES


@pytest.fixture
def backup() -> Iterator[Backup]:
    backup = Backup(layers=2, token=TOKEN)
    yield backup
    backup.close()


def put(backup: Backup, step: int, *layers: int, generation: int = 0) -> None:
    with wire.connect(backup.host, backup.port, 5) as sock:
        for layer in layers:
            wire.put(sock, layer, step, memoryview(bytes([layer, step]) * 6), TOKEN, generation)


def test_a_step_counts_once_every_layer_of_it_is_here(backup: Backup) -> None:
    """Half a copy is no copy."""
    put(backup, 10, 0)
    assert backup.latest() is None
    put(backup, 10, 1)
    assert backup.latest() == 10
    put(backup, 20, 0)
    assert backup.latest() == 10


def test_a_peer_that_vanishes_is_noticed(backup: Backup) -> None:
    """Both ends of a connection ask after a silent peer, and give up one that does not acknowledge."""
    with (
        wire.connect(backup.host, backup.port, 5) as ours,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
        wire.accept(listener) as theirs,
    ):
        for sock in (ours, theirs):
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, between, probes, unacknowledged_ms = (
                sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            )
            assert idle + between * probes == wire.SILENCE_S == unacknowledged_ms / 1000


def test_what_was_put_comes_back(backup: Backup) -> None:
    """Bytes in, the same bytes out; the digest is of the first third, the weights."""
    put(backup, 3, 0, 1)
    view = bytearray(12)
    with wire.connect(backup.host, backup.port, 5) as sock:
        wire.get_into(sock, 1, 3, memoryview(view), TOKEN)
    assert view == bytes([1, 3]) * 6
    digests = backup.weights_digests(3)
    assert digests is not None
    assert digests[1] == hashlib.sha256(view[:4]).hexdigest()
    assert backup.weights_digests(4) is None


def test_memory_is_bounded(backup: Backup) -> None:
    """Two whole copies and the one that is arriving; late pieces of older ones are dropped."""
    for step in range(10, 60, 10):
        put(backup, step, 0, 1)
        assert backup.store.size_bytes <= 2 * 2 * 12
    put(backup, 20, 0)
    assert backup.store.size_bytes == 2 * 2 * 12


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
    assert backup.store.go_back(2) == 10
    assert backup.store.size_bytes == 24


class Said:
    """A backup that only has a status."""

    def __init__(self) -> None:
        self.status = BackupStatus()
        self.address = None
        self.expected: list[int] = []

    def expect(self, step: int) -> None:
        self.expected.append(step)

    def go_back(self, generation: int) -> int | None:
        return None

    def weights_digests(self, step: int) -> dict[int, str] | None:
        return None


def test_a_copy_is_sent_only_when_the_last_one_has_arrived() -> None:
    """A slow backup is not flooded; a sender that died does not stop the copies for ever."""
    said, orders = Said(), BackupOrders("state", every=10)
    due = [steps for steps in range(1, 30) if orders.at(steps, False, False, said) == (True, False)]
    assert due == [10]
    said.status = BackupStatus(latest=10)
    assert [steps for steps in range(30, 100) if orders.at(steps, False, False, said)[0]] == [30, 90]
    orders.reset()
    assert orders.at(100, False, False, said) == (True, False)
    assert orders.at(103, True, False, said) == (True, False)


def test_a_new_backup_is_given_the_state_at_once() -> None:
    """No period is waited for when the old one has died."""
    said, orders = Said(), BackupOrders("state", every=10)
    assert orders.at(10, False, False, said)[0]
    said.status = BackupStatus(restarts=1)
    assert [steps for steps in range(11, 20) if orders.at(steps, False, False, said)[0]] == [11]


def test_gradients_are_streamed_once_a_state_is_on_its_way() -> None:
    """The first commit pushes the state, every later one its gradient, until there is a gap."""
    said, orders = Said(), BackupOrders("gradients", every=10)
    assert orders.at(1, False, False, said) == (True, False)
    assert orders.at(2, False, False, said) == (False, True)
    said.status = BackupStatus(latest=2, needs_state=False)
    assert orders.at(3, True, False, said) == (False, True)
    said.status = BackupStatus(latest=2, needs_state=True)
    assert orders.at(4, False, False, said) == (True, False)
    assert said.expected == [1, 4]


OPTIMISER = wire.AdamW(1e-3, 0.01, 0.9, 0.95, 1e-8)
SIZE = 5


def gradient_of(step: int, layer: int) -> bytearray:
    return bytearray(np.random.default_rng([step, layer]).normal(size=SIZE).astype(np.float32).tobytes())


def state_at(step: int, layer: int) -> bytes:
    """The state that the optimiser reaches from zero."""
    rows = np.zeros((3, SIZE), dtype=np.float32)
    for done in range(step):
        adamw.apply(rows, np.frombuffer(gradient_of(done, layer), np.float32), done, OPTIMISER)
    return rows.tobytes()


@pytest.fixture
def following() -> Iterator[FollowedState]:
    store = FollowedState(layers=2)
    for layer in (0, 1):
        store.put(0, layer, bytearray(state_at(0, layer)))
    yield store
    store.close()


def feed(store: FollowedState, step: int, *layers: int, generation: int = 0) -> None:
    for layer in layers:
        store.gradient(step, layer, OPTIMISER, gradient_of(step, layer), generation)


def reaches(store: FollowedState, step: int) -> bool:
    with store.changed:
        return store.changed.wait_for(lambda: store.latest() == step, 10)


def test_gradients_bring_the_state_forward(following: FollowedState) -> None:
    """A step is taken when all its gradients are here; the state is then what the optimiser makes."""
    for step in range(4):
        feed(following, step, 1, 0)
        assert reaches(following, step + 1)
    feed(following, 4, 0)
    copy = following.copy()
    assert copy is not None
    assert copy == (4, {layer: state_at(4, layer) for layer in (0, 1)})
    assert following.get(3, 0) is None
    assert following.size_bytes == (2 * 3 + 1) * SIZE * 4


def test_a_missing_gradient_stops_the_state_until_a_new_one_comes(following: FollowedState) -> None:
    """The old state stays good to go back to; gradients after the new one's step are kept and count."""
    feed(following, 0, 0, 1)
    assert reaches(following, 1)
    feed(following, 1, 0)  # the other sender has died
    feed(following, 2, 0, 1)
    assert following.needs_state
    assert following.latest() == 1
    following.expect(4)
    feed(following, 4, 0, 1)
    for layer in (0, 1):
        following.put(4, layer, bytearray(state_at(4, layer)))
    assert reaches(following, 5)
    assert not following.needs_state
    assert following.get(5, 1) == state_at(5, 1)


def test_memory_is_bounded_while_a_state_never_arrives(following: FollowedState) -> None:
    """Gradients pile up for a few steps only."""
    feed(following, 1, 0)
    following.expect(2)
    most = (2 * 3 + 2 * (MOST_AHEAD + 1)) * SIZE * 4
    for step in range(2, 40):
        feed(following, step, 0, 1)
        assert following.size_bytes <= most


def test_gradients_of_before_a_rollback_are_never_applied(following: FollowedState) -> None:
    """Whenever they arrive: in fast mode the step is done again with other roundings."""
    feed(following, 0, 0, 1, generation=4)
    assert reaches(following, 1)
    feed(following, 1, 0, generation=4)
    assert following.go_back(6) == 1
    feed(following, 1, 1, generation=5)
    assert following.get(1, 1) == state_at(1, 1)
    feed(following, 1, 0, generation=6)
    feed(following, 1, 0, 1, generation=5)
    assert following.latest() == 1 and not following.needs_state
    feed(following, 1, 1, generation=7)
    assert reaches(following, 2)
    following.expect(3)
    for generation, layer in ((5, 0), (6, 1), (7, 0)):
        assert following.latest() == 2
        following.put(3, layer, bytearray(state_at(3, layer)), generation)
    assert following.latest() == 3


def test_a_backup_that_dies_is_replaced_at_the_same_address(tmp_path: Path) -> None:
    """SIGKILL: what was asked fails in one line, and the next process takes what is pushed."""
    backup = BackupProcess(2, TOKEN, tmp_path, follow=False)
    try:
        put_at(backup.address, 10)
        assert backup.wait_for(10, 20)
        os.kill(backup.pid, signal.SIGKILL)
        assert until(lambda: backup.status.restarts == 1)
        assert backup.status.latest is None
        put_at(backup.address, 20)
        assert backup.wait_for(20, 20)
        assert backup.go_back(5) == 20
        os.kill(backup.pid, signal.SIGKILL)
        assert until(lambda: backup.status.restarts == 2)
        put_at(backup.address, 30, generation=4)  # its successor knows what is too old
        put_at(backup.address, 20, generation=5)
        assert backup.wait_for(20, 20)
        assert backup.go_back(6) == 20
        assert backup.weights_digests(20) is not None
        pid = backup.pid
    finally:
        backup.close()
    assert not Path(f"/proc/{pid}").exists()


def put_at(address: tuple[str, int], step: int, generation: int = 0) -> None:
    with wire.connect(*address, 20) as sock:
        for layer in (0, 1):
            wire.put(sock, layer, step, memoryview(bytes([layer, step]) * 6), TOKEN, generation)


def until(done: Callable[[], bool]) -> bool:
    end_s = time.monotonic() + 20
    while not done() and time.monotonic() < end_s:
        time.sleep(0.01)
    return done()


def test_a_pause_is_what_a_change_took_beyond_an_ordinary_step() -> None:
    """Steps of 1 s, then one of 4 s in a new generation: the pause is 3 s and does not count as ordinary."""
    pace = Pace()
    assert pace.commit(10.0, fresh=True, layout=Layout(1, 1)) == 0.0
    for now_s in (11.0, 12.0, 13.0):
        pace.commit(now_s, fresh=False, layout=Layout(1, 1))
    assert pace.commit(17.0, fresh=True, layout=Layout(1, 1)) == 3.0
    assert pace.ordinary_s == 1.0
    assert pace.commit(17.5, fresh=True, layout=Layout(1, 1)) == 0.0


def test_pieces_of_undone_steps_come_too_late(backup: Backup) -> None:
    """The job went back to step 10: what still arrives of step 20 is not mixed with what is made anew."""
    put(backup, 10, 0, 1, generation=1)
    put(backup, 20, 0, generation=1)
    assert backup.store.go_back(3) == 10
    put(backup, 20, 0, 1, generation=2)
    assert backup.store.go_back(4) == 10
    put(backup, 20, 0, generation=4)
    put(backup, 20, 1, generation=3)
    assert backup.latest() == 10
    put(backup, 20, 1, generation=5)
    assert backup.latest() == 20
