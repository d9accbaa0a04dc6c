"""What is over is freed at once: groups hold threads and sockets, and an idle worker collects no garbage."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from runtime.control.messages import Prepare
from runtime.engine.generation import Generation
from runtime.engine.groups import StoreServer
from runtime.engine.transfer import Address, FetchError, fetch_layers
from runtime.engine.waits import Waiter

HOST = "127.0.0.1"


class Held:
    """Something that, kept, would keep threads and memory."""


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """Only what nothing refers to is freed."""
    gc.disable()
    yield
    gc.enable()


def fail_with(held: Held) -> None:
    """The traceback keeps this frame, and so what was passed."""
    raise RuntimeError(f"the network failed under {held}")


def join(name: str) -> None:
    """Wait for the thread of that name to end."""
    for thread in threading.enumerate():
        if thread.name == name:
            thread.join(10)
            assert not thread.is_alive()


def test_a_failed_call_keeps_nothing_once_its_error_was_handled() -> None:
    """The error, its traceback and the frames that it passed are no circle."""
    held = Held()
    seen = weakref.ref(held)
    waiter = Waiter("failed")

    def step(groups: Held) -> None:
        waiter.call(partial(fail_with, groups))

    try:
        step(held)
    except RuntimeError:
        pass
    else:
        pytest.fail("the call did not fail")
    del held
    waiter.abandon()
    join("failed")
    assert seen() is None


def test_a_call_that_fails_when_nobody_waits_for_it_any_more_keeps_nothing() -> None:
    """Its error is never taken."""
    held = Held()
    seen = weakref.ref(held)
    waiter = Waiter("left")
    waiter.post(partial(fail_with, held))
    waiter.abandon()
    join("left")
    del held, waiter
    assert seen() is None


def test_a_failed_transfer_keeps_no_state() -> None:
    """What was to be filled may be gigabytes."""
    memory = torch.zeros(1000)
    seen = weakref.ref(memory.untyped_storage())
    nobody = Address(HOST, 1)

    def fetch(values: torch.Tensor) -> None:
        views = {0: memoryview(values.numpy()).cast("B")}
        fetch_layers(3, [(0, nobody)], views, b"token", lambda point: None)

    try:
        fetch(memory)
    except FetchError:
        pass
    else:
        pytest.fail("nobody sent it")
    del memory
    assert seen() is None


def test_a_generation_keeps_no_earlier_one() -> None:
    """Each is made with memory that the running one leaves to it."""
    store = StoreServer(HOST)

    def generation(number: int, running: Generation | None) -> Generation:
        message = Prepare(number, 1, [0, 0], [[0]], [HOST, store.port])
        kept = partial(lambda new, running: [], running=running)
        made = Generation(message, HOST, lambda seconds: None, kept)
        made.groups()
        return made

    first = generation(1, None)
    second = generation(2, first)
    seen = weakref.ref(first)
    first.waiter.abandon()
    join("generation-1")
    first.free()
    del first
    assert seen() is None
    second.waiter.abandon()
    join("generation-2")
