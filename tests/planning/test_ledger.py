"""Every sample once an epoch, whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.planning.ledger import Ledger, SampleOrder, permuted


@given(st.integers(1, 300), st.integers(0, 2**32), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_a_shuffle_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    """Every sample comes once an epoch, whatever the size."""
    assert sorted(permuted(n, count, seed, epoch) for n in range(count)) == list(range(count))


def test_epochs_and_seeds_shuffle_differently() -> None:
    """The order changes from epoch to epoch, and from seed to seed."""
    orders = {tuple(permuted(n, 64, seed, epoch) for n in range(64)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 30))
@settings(max_examples=60, deadline=None)
def test_a_run_sees_every_sample_once_an_epoch(num_samples: int, mini_batch: int, seed: int) -> None:
    """Batches that straddle the end of an epoch neither skip nor repeat a sample."""
    order = SampleOrder(num_samples, mini_batch, seed)
    steps = -(-2 * num_samples // mini_batch)
    seen = [sample for step in range(steps) for sample in order.samples(step)]
    for epoch in range(2):
        assert sorted(seen[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


def test_samples_are_a_function_of_step_and_index_alone() -> None:
    """Any part of a batch, asked for in any order, is the same part of the same batch."""
    order = SampleOrder(1000, 16, 7)
    whole = order.samples(41)
    assert order.samples(41, [9, 3]) == (whole[9], whole[3])


def test_a_committed_run_has_lost_and_repeated_nothing() -> None:
    """Commits in order, with steps given up in between, count each sample once."""
    ledger = Ledger(mini_batch=8)
    for step in range(5):
        ledger = ledger.abandon().commit(step)
    assert (ledger.samples, ledger.samples_lost, ledger.samples_repeated) == (40, 0, 0)
    assert ledger.attempts_abandoned == 5


def test_a_rollback_truncates_and_its_steps_are_done_again() -> None:
    """After a rollback the same steps commit again, and none of it counts as lost or repeated."""
    ledger = Ledger(mini_batch=8)
    for step in range(5):
        ledger = ledger.commit(step)
    ledger = ledger.rollback(3)
    assert ledger.samples == 24
    ledger = ledger.commit(3).commit(4)
    assert (ledger.samples, ledger.samples_lost, ledger.samples_repeated) == (40, 0, 0)
    assert ledger.steps_done_again == 2
    with pytest.raises(ValueError, match="no rollback to step 6"):
        ledger.rollback(6)


def test_a_wrong_commit_is_counted_not_hidden() -> None:
    """A step that is skipped shows as lost, one that comes twice as repeated."""
    ledger = Ledger(mini_batch=8).commit(0).commit(2)
    assert ledger.samples_lost == 8
    assert ledger.commit(2).samples_repeated == 8
