"""State that is copied while training goes on has the same bits as state that is sent at a standstill."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from runtime.control import messages, wire
from runtime.engine.ahead import AheadCopy
from runtime.engine.state import LayerState
from runtime.engine.transfer import StateServer, split_streams
from tests.engine.conftest import STEPS
from tests.engine.driver import Crew

OLD, NEW = ["a", "b"], ["c", "d"]


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew([*OLD, *NEW])
    yield crew
    crew.close()


def copies_of(crew: Crew, stages: int) -> dict[str, list[list[object]]]:
    """NEW takes over from OLD at the same cut, each from its counterpart."""
    return {
        new: [[layer, crew.address(old)] for layer in crew.cuts(stages)[index]]
        for index, (old, new) in enumerate(zip(OLD, NEW, strict=True))
    }


def test_copied_layers_follow_their_source(crew: Crew, alone: tuple[list[float], dict[int, str]]) -> None:
    """Copied before step 1, four steps before the switch: no layer is sent again, and the end is the same."""
    crew.prepare(1, 1, 2, OLD)
    crew.prepared(OLD)
    crew.from_seed(1, 2, OLD)
    losses = []
    copies = copies_of(crew, 2)
    for step in range(4):
        votes = crew.votes(OLD)
        losses.append(sum(loss for vote in votes for _, loss in vote.losses) / 12)
        if step == 1:
            crew.prepare(2, 1, 2, NEW, copies)
            crew.prepared(NEW)
            ahead = {name: crew.workers[name].expect(messages.Copied).bytes_ahead for name in NEW}
        crew.commit(1, step, OLD, proceed=step < 3)
    for name in NEW:
        crew.workers[name].send(messages.Switch(2, 4, copies[name]))
    votes = crew.votes(NEW)
    for vote, name in zip(votes, NEW, strict=True):
        # the copy, and a third of it for each of the three steps since: what has not come before the switch
        # comes at it
        assert vote.ahead_bytes + vote.fetched_bytes == 2 * ahead[name]
    losses.append(sum(loss for vote in votes for _, loss in vote.losses) / 12)
    crew.commit(2, 4, NEW, proceed=True)
    losses += crew.train(2, 5, STEPS - 5, NEW)
    assert (losses, crew.digests(NEW)) == alone


def test_a_copy_is_saved_when_its_generation_is_aborted(
    crew: Crew, alone: tuple[list[float], dict[int, str]]
) -> None:
    """A stage's only holder dies before the switch: who has copied the stage has it, nothing goes back."""
    crew.prepare(1, 1, 2, OLD)
    crew.prepared(OLD)
    crew.from_seed(1, 2, OLD)
    losses = []
    for step in range(2):
        votes = crew.votes(OLD)
        losses.append(sum(loss for vote in votes for _, loss in vote.losses) / 12)
        crew.commit(1, step, OLD, proceed=True)
    crew.votes(OLD)  # step 2 is computed, and never committed
    crew.prepare(2, 1, 2, NEW, copies_of(crew, 2))
    crew.prepared(NEW)
    for name in NEW:
        crew.workers[name].expect(messages.Copied)
    crew.workers["b"].kill()
    for name in ("a", *NEW):
        crew.workers[name].send(messages.Abort(2))
    held = {name: crew.workers[name].expect(messages.Aborted) for name in ("a", *NEW)}
    cuts = crew.cuts(2)
    assert [(held[name].step, held[name].holds) for name in NEW] == [(2, cuts[0]), (2, cuts[1])]
    crew.prepare(3, 1, 2, ["a", "d"])
    for name in ("a", "d"):
        crew.workers[name].send(messages.Switch(3, 2, []))
    losses += crew.train(3, 2, STEPS - 2, ["a", "d"])
    assert (losses, crew.digests(["a", "d"])) == alone


def test_a_source_that_stands_still_is_left_alone(crew: Crew) -> None:
    """A copy whose source is stopped never says that it is whole, and ends at once when it is cancelled."""
    crew.prepare(1, 1, 1, ["a"])
    crew.prepared(["a"])
    crew.from_seed(1, 1, ["a"])
    crew.votes(["a"])
    pid = crew.workers["a"].process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        crew.prepare(2, 1, 1, ["c"], {"c": [[layer, crew.address("a")] for layer in range(8)]})
        crew.prepared(["c"])
        crew.workers["c"].send(messages.Cancel(2))
        crew.workers["c"].send(messages.Abort(2))
        assert crew.workers["c"].expect(messages.Aborted).holds == []
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_layer_that_waits_for_a_commit_holds_up_none_that_is_behind() -> None:
    """Two steps are committed between the copies of two layers: at the switch both stand before its step."""
    cpu, token = torch.device("cpu"), b"\0" * wire.TOKEN_BYTES
    state = [memoryview(bytearray(3 * 4 * 5)) for _ in range(2)]
    layers = {index: lambda index=index: state[index] for index in range(2)}
    server = StateServer("127.0.0.1", lambda name: None)
    server.publish(4, layers)
    commits = iter((5, 6))

    def commit_twice(name: str) -> None:
        for step in commits:
            server.keep(0, step - 1, torch.zeros(5))
            server.publish(step, layers)

    def new_layer(index: int) -> LayerState:
        return LayerState(index, nn.Linear(5, 1, bias=False, device="meta"), True, cpu)

    copies = dict.fromkeys(range(2), server.address)
    replayed: list[int] = []
    copy = AheadCopy(
        1,
        copies,
        token,
        new_layer,
        lambda layer, step, gradient: replayed.append(step),
        commit_twice,
        lambda moved_bytes, seconds: None,
    )
    began_s = time.monotonic()
    assert copy.take(6).keys() == {0, 1}
    assert replayed == [4, 5] and time.monotonic() - began_s < 10


def test_layers_are_dealt_out_to_streams_evenly() -> None:
    """Every layer once, a few streams of about the same size; small ones share one."""
    sizes = {index: (100 << 20 if index == 3 else 30 << 20) for index in range(9)}
    parts = split_streams(sizes)
    assert sorted(layer for part in parts for layer in part) == list(range(9))
    loads = [sum(sizes[layer] for layer in part) for part in parts]
    assert len(parts) == 4
    assert max(loads) - min(loads) <= 40 << 20
    assert split_streams({0: 1000, 1: 1000}) == [[0, 1]]
