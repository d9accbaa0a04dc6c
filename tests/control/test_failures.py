"""Workers that cannot go on: which node is given up, and when the job is."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from runtime.control.training.failures import MOST_FAILURES, Failure, Failures
from runtime.control.training.giving_up import GivingUp
from runtime.control.training.roster import Roster
from runtime.control.training.training import TrainingError
from tests.control.test_roster import HELLO

MEMBERS = ("a", "b", "c")


def fail(
    failures: Failures,
    node: str,
    step: int = 5,
    members: tuple[str, ...] = MEMBERS,
    source: str | None = None,
) -> str | None:
    """One attempt that ends with a failure; the node that is unusable now."""
    failures.report(node, f"{node} is broken", step, members, source)
    unusable: Failure | None = failures.settle()
    return None if unusable is None else unusable.node


def test_a_node_is_unusable_at_its_third_failure_and_forgiven_at_a_commit() -> None:
    """A step that was only done again, before the one that failed, forgives nothing."""
    failures = Failures()
    assert [fail(failures, "a") for _ in range(MOST_FAILURES)] == [None, None, "a"]
    failures = Failures()
    assert [fail(failures, "a") for _ in range(2)] == [None, None]
    failures.commit(4, MEMBERS)
    assert fail(failures, "a") == "a"
    failures = Failures()
    assert [fail(failures, "a") for _ in range(2)] == [None, None]
    failures.commit(5, MEMBERS)
    assert [fail(failures, "a", step=6) for _ in range(3)] == [None, None, "a"]
    failures.commit(6, ("b", "c"))
    assert [fail(failures, "b", step=7, members=("b", "c")) for _ in range(3)] == [None, None, "b"]


def test_who_waited_for_the_dead_is_not_charged() -> None:
    """A death, or an instance's end, explains a failure, unless it is of the worker that reported it."""
    failures = Failures()
    for _ in range(3 * MOST_FAILURES):
        failures.report("a", "connection closed by peer", 5, MEMBERS)
        failures.lose("b")
        assert failures.settle() is None
        failures.report("a", "connection closed by peer", 5, MEMBERS)
        failures.end(("c",))
        assert failures.settle() is None
    for last in (False, False, True):
        failures.report("a", "out of memory", 5, MEMBERS)
        failures.lose("a")
        assert (failures.settle() is not None) is last


def test_the_job_ends_when_every_member_or_a_second_node_fails() -> None:
    """With the worker's own words. One that is alone is replaced first."""
    failures = Failures()
    fail(failures, "a", members=("a", "b"))
    fail(failures, "b", members=("a", "b"))
    with pytest.raises(TrainingError, match="every worker fails at step 5: a is broken"):
        fail(failures, "a", members=("a", "b"))
    failures = Failures()
    assert [fail(failures, "a", members=("a",)) for _ in range(3)] == [None, None, "a"]
    failures.end(("a",))
    assert [fail(failures, "b", members=("b",)) for _ in range(2)] == [None, None]
    with pytest.raises(TrainingError, match="b fails at step 5 as a did: b is broken"):
        fail(failures, "b", members=("b",))


def test_a_source_is_charged_once_a_second_receiver_fails_at_it() -> None:
    """The first receiver may be given up in its stead; the job is not."""
    failures = Failures()
    assert [fail(failures, "a", source="c") for _ in range(3)] == [None, None, "a"]
    failures.end(("a",))
    members = ("b", "c", "d")
    assert [fail(failures, "b", members=members, source="c") for _ in range(3)] == [None, None, "c"]
    failures.end(("c",))
    failures = Failures()
    assert [fail(failures, "a", source=source) for source in ("b", "c", "b")] == [None, None, "a"]


def test_a_node_that_does_not_start_is_unusable_and_all_of_them_are_the_jobs_fault() -> None:
    """Its third failure in a row counts; so many nodes in a row as are wanted, or three, end the job."""
    failures = Failures(wanted=4)
    assert [failures.fail_start("a") for _ in range(MOST_FAILURES)] == [False, False, True]
    failures.ready("b")
    assert not failures.fail_start("b")
    failures.ready("b")
    assert [failures.fail_start("b") for _ in range(MOST_FAILURES)] == [False, False, True]
    for name in "abc":
        failures.broken(name, "no disk")
    failures.ready("d")
    for name in "abc":
        failures.broken(name, "no disk")
    with pytest.raises(TrainingError, match="4 nodes in a row did not get ready: d: no disk"):
        failures.broken("d", "no disk")


def test_who_dies_at_every_attempt_is_unusable() -> None:
    """Until it has taken part in a commit, or its instance has ended; a second such node ends the job."""
    failures = Failures()
    for forgiven in (lambda: failures.commit(5, MEMBERS), lambda: failures.end(("a",))):
        assert [failures.die("a", "gone", 5) for _ in range(2)] == [False, False]
        forgiven()
    assert [failures.die("a", "gone", 5) for _ in range(MOST_FAILURES)] == [False, False, True]
    failures.commit(5, ("b",))
    assert [failures.die("b", "gone", 6) for _ in range(MOST_FAILURES)] == [False, False, True]
    with pytest.raises(TrainingError, match="c dies at step 6, b did so too: gone"):
        for _ in range(MOST_FAILURES):
            failures.die("c", "gone", 6)


def test_a_worker_that_came_and_never_gets_ready_costs_its_instance() -> None:
    """It is alive, so nothing else would end it: another instance is rented; as many in a row end the job."""
    roster, fleet = Roster(), Mock()
    giving_up = GivingUp(Mock(), roster, Mock(), fleet, Mock(), wanted=2, gpus=1)
    for number, node in enumerate(("a", "b", "c")):
        roster.join(node, HELLO)
        giving_up.look(1000.0 * number, 10.0, 60.0)
        giving_up.look(1000.0 * number + 59.0, 10.0, 60.0)
        assert fleet.end.call_count == number
        if node == "c":
            with pytest.raises(TrainingError, match=r"3 nodes in a row did not get ready: c: .* for 60 s"):
                giving_up.look(1000.0 * number + 60.0, 10.0, 60.0)
            return
        giving_up.look(1000.0 * number + 60.0, 10.0, 60.0)
        assert fleet.end.call_args.args[0] == node
