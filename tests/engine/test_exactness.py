"""Weights do not depend on the layout, nor on what happened on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runtime.control import messages
from runtime.control.backup.server import Backup
from tests.engine.conftest import STEPS
from tests.engine.driver import Crew


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew([f"w{index}" for index in range(6)])
    yield crew
    crew.close()


@pytest.mark.parametrize(("pipelines", "stages"), [(1, 2), (2, 1), (3, 2), (2, 3), (5, 1), (1, 6)])
def test_every_layout_gives_the_same_losses_and_weights(
    crew: Crew, alone: tuple[list[float], dict[int, str]], pipelines: int, stages: int
) -> None:
    """Losses and weights are bit for bit those of one process, also when D does not divide the work."""
    names = list(crew.workers)[: pipelines * stages]
    crew.prepare(1, pipelines, stages, names)
    crew.prepared(names)
    crew.from_seed(1, stages, names)
    losses = crew.train(1, 0, STEPS, names)
    assert (losses, crew.digests(names)) == alone


def test_a_repartition_moves_state_and_nothing_else(
    crew: Crew, alone: tuple[list[float], dict[int, str]]
) -> None:
    """2x2 becomes 1x3 in the middle, the groups built while the old ones train: nothing changes."""
    names = list(crew.workers)
    crew.prepare(1, 2, 2, names[:4])
    crew.prepared(names[:4])
    crew.from_seed(1, 2, names[:4])
    losses = []
    for step in range(3):
        votes = crew.votes(names[:4])
        reported = sorted(pair for vote in votes for pair in vote.losses)
        losses.append(sum(loss for _, loss in reported) / len(reported))
        if step == 0:
            crew.prepare(2, 1, 3, names[3:])  # beside the running generation
        crew.commit(1, step, names[:4], proceed=step < 2)
    crew.prepared(names[3:])
    old, new = crew.cuts(2), crew.cuts(3)
    held_by_w3 = old[1]
    for index, name in enumerate(names[3:]):
        fetches = [
            [layer, crew.address(names[0] if layer in old[0] else names[1])]
            for layer in new[index]
            if not (name == names[3] and layer in held_by_w3)
        ]
        crew.workers[name].send(messages.Switch(2, 3, fetches))
    losses += crew.train(2, 3, 3, names[3:])
    assert (losses, crew.digests(names[3:])) == alone


def test_an_abandoned_step_is_done_again_whole(crew: Crew, alone: tuple[list[float], dict[int, str]]) -> None:
    """A worker dies with its vote cast; the others leave the step, and its repetition has the same bits."""
    names = list(crew.workers)
    crew.prepare(1, 3, 2, names)
    crew.prepared(names)
    crew.from_seed(1, 2, names)
    losses = crew.train(1, 0, 2, names)
    crew.workers[names[5]].kill()
    survivors = names[:4]
    for name in survivors:
        crew.workers[name].send(messages.Abort(1))
    for name in survivors:
        aborted = crew.workers[name].expect(messages.Aborted)
        assert aborted.step == 2
        assert aborted.holds == crew.cuts(2)[names.index(name) % 2]
    crew.prepare(2, 2, 2, survivors)
    for name in survivors:
        crew.workers[name].send(messages.Switch(2, 2, []))
    crew.prepared(survivors)
    losses += crew.train(2, 2, STEPS - 2, survivors)
    assert (losses, crew.digests(survivors)) == alone


def test_a_lost_stage_comes_back_from_the_backup(alone: tuple[list[float], dict[int, str]]) -> None:
    """Every holder of a stage dies; all go back to the backup's step, and the end is the same."""
    token = "5a" * 16
    backup = Backup(layers=8, token=bytes.fromhex(token))
    crew = Crew(["a", "b", "c"], backup=(backup.host, backup.port), token=token)
    try:
        crew.prepare(1, 1, 2, ["a", "b"])
        crew.prepared(["a", "b"])
        crew.from_seed(1, 2, ["a", "b"])
        losses = []
        for step in range(4):
            reported = sorted(pair for vote in crew.votes(["a", "b"]) for pair in vote.losses)
            losses.append(sum(loss for _, loss in reported) / len(reported))
            crew.commit(1, step, ["a", "b"], proceed=step < 3, push=step == 2)
        backup.wait_for(3, timeout_s=20)
        crew.workers["b"].kill()
        crew.workers["a"].send(messages.Abort(1))
        assert crew.workers["a"].expect(messages.Aborted).step == 4
        crew.prepare(2, 1, 2, ["a", "c"])
        for index, name in enumerate(["a", "c"]):
            fetches = [[layer, "backup"] for layer in crew.cuts(2)[index]]
            crew.workers[name].send(messages.Switch(2, 3, fetches))
        crew.prepared(["a", "c"])
        losses[3:] = crew.train(2, 3, STEPS - 3, ["a", "c"])
        assert (losses, crew.digests(["a", "c"])) == alone
    finally:
        crew.close()
        backup.close()


def test_a_fetch_of_another_step_is_refused(crew: Crew) -> None:
    """Versions never mix: a source that stands at another step sends nothing, and the receiver says so."""
    names = list(crew.workers)
    crew.prepare(1, 1, 1, names[:1])
    crew.prepared(names[:1])
    crew.from_seed(1, 1, names[:1])
    crew.train(1, 0, 2, names[:1])
    crew.prepare(2, 1, 1, names[1:2])
    crew.prepared(names[1:2])
    fetches = [[layer, crew.address(names[0])] for layer in range(8)]
    crew.workers[names[1]].send(messages.Switch(2, 1, fetches))
    failed = crew.workers[names[1]].expect(messages.Failed)
    assert "0 bytes offered" in failed.error


def test_fast_mode_stays_close(alone: tuple[list[float], dict[int, str]]) -> None:
    """Without exact sums the losses agree within fp32's rounding."""
    crew = Crew(["a", "b"], exact=False)
    try:
        crew.prepare(1, 2, 1, ["a", "b"])
        crew.prepared(["a", "b"])
        crew.from_seed(1, 1, ["a", "b"])
        losses = crew.train(1, 0, STEPS, ["a", "b"])
        assert losses == pytest.approx(alone[0], rel=1e-5)
    finally:
        crew.close()
