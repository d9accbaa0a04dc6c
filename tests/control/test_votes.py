"""When a step is decided, and by what."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.control.messages import Vote
from runtime.control.training.digests import FinalDigests
from runtime.control.training.votes import Ballot, CoverageError


def vote(generation: int = 1, step: int = 0, losses: object = (), norms: object = ()) -> Vote:
    return Vote(generation, step, [list(x) for x in losses], [list(x) for x in norms])  # type: ignore[attr-defined]


def test_a_step_is_decided_by_the_last_vote_and_not_before() -> None:
    """Two positions, two votes; a node that votes twice counts once."""
    ballot = Ballot(1, 0, positions=2)
    assert not ballot.cast("a", vote())
    assert not ballot.cast("a", vote())
    assert ballot.cast("b", vote())


@pytest.mark.parametrize(("generation", "step"), [(0, 0), (2, 0), (1, 1)])
def test_votes_of_another_generation_or_step_do_not_count(generation: int, step: int) -> None:
    """What arrives late from an abandoned generation decides nothing."""
    ballot = Ballot(1, 0, positions=1)
    assert not ballot.cast("a", vote(generation, step))
    assert ballot.cast("a", vote())


@given(st.lists(st.floats(0, 20), min_size=1, max_size=6))
def test_the_loss_does_not_depend_on_who_reported_what(losses: list[float]) -> None:
    """Any order of votes gives the same bits."""
    pairs = list(enumerate(losses))
    found = set()
    for order in list(permutations(pairs))[:24]:
        ballot = Ballot(1, 0, positions=2)
        ballot.cast("a", vote(losses=order[::2]))
        ballot.cast("b", vote(losses=order[1::2]))
        ballot.check_coverage(len(losses))
        found.add(ballot.loss)
    assert found == {math.fsum(losses) / len(losses)}


@pytest.mark.parametrize("done", [[0, 1], [0, 1, 1, 2], [0, 1, 2, 3]])
def test_a_mini_batch_that_is_not_whole_is_refused(done: list[int]) -> None:
    """A micro-batch that is missing, twice, or too many never reaches the ledger."""
    ballot = Ballot(1, 4, positions=1)
    ballot.cast("a", vote(step=4, losses=[(k, 1.0) for k in done]))
    with pytest.raises(CoverageError, match="step 4"):
        ballot.check_coverage(3)


def test_clipping_scales_the_whole_gradient_down_to_the_norm() -> None:
    """Norms 3 and 4 make 5; a norm below the limit, or no limit, leaves it alone."""
    ballot = Ballot(1, 0, positions=2)
    ballot.cast("a", vote(norms=[(0, 9.0)]))
    ballot.cast("b", vote(norms=[(1, 16.0)]))
    assert ballot.clip_scale(1.0) == pytest.approx(0.2)
    assert ballot.clip_scale(5.0) == 1.0
    assert ballot.clip_scale(0.0) == 1.0


def test_the_outcome_is_within_reach_while_each_layer_has_a_holder() -> None:
    """A node that went is no holder any more, though a new worker has come in its place."""
    digests = FinalDigests(3)
    digests.holders = {"a": frozenset({0, 1}), "b": frozenset({1, 2}), "c": frozenset({2})}
    digests.lose("b")
    assert not digests.out_of_reach()
    digests.lose("a")
    assert digests.out_of_reach()
    assert not digests.whole({"c": frozenset({2})})
    assert digests.whole({"c": frozenset({2}), "spare": frozenset({0, 1})})
    digests.report([[0, "aa"], [1, "bb"]])
    assert not digests.out_of_reach()
