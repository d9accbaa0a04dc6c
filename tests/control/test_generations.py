"""When a prepared generation begins: once it stands and its state is there, or else would come too late."""

from __future__ import annotations

from runtime.control.messages import Copied, Prepared
from runtime.control.training.generations import COPY_PATIENCE_S, Pending
from runtime.control.training.recovery import Answers
from runtime.planning.types import Fetch, Layout, MigrationKind, MigrationPlan, Position

PLAN = MigrationPlan(
    generation=4,
    kind=MigrationKind.INTER_STAGE,
    layout=Layout(1, 2),
    cuts=((0, 1), (2, 3)),
    assignment={"a": Position(0, 0), "c": Position(0, 1)},
    fetches=(Fetch("c", 2, "b"), Fetch("c", 3, "b")),
    noticed=True,
    bytes_moved=8,
    expected_pause_s=0.0,
    why="b will go",
)


def standing(switch_s: float = 2.0) -> tuple[Pending, list[str]]:
    """A generation whose groups stand, prepared since second 100, and what it has told."""
    pending, told = Pending(PLAN, 100.0, switch_s), []
    for node in ("a", "c"):
        pending.heard(node, Prepared(4, 0.01))
    return pending, told


def goes(pending: Pending, told: list[str], now_s: float, notices: dict[str, float]) -> bool:
    """Whether it begins at this commit, with steps of one second."""
    return pending.goes(now_s, 1.0, notices, lambda kind, text, why: told.append(why))


def test_it_waits_for_the_copies_of_its_own_receivers() -> None:
    """Groups alone are not enough, nor is another generation's copy; then it begins without a word."""
    pending, told = standing()
    assert not goes(pending, told, 101.0, {})
    pending.heard("c", Copied(3, 8, 0.1))
    assert not goes(pending, told, 101.0, {})
    pending.heard("c", Copied(4, 8, 0.1))
    assert goes(pending, told, 101.0, {})
    assert told == []


def test_without_groups_it_never_begins() -> None:
    """A deadline does not help: there is nothing to switch to."""
    pending = Pending(PLAN, 100.0, 2.0)
    assert not goes(pending, [], 101.0, {"b": 101.5})


def test_a_deadline_before_the_next_commit_ends_the_wait() -> None:
    """It begins at the last commit from which the rest of the state can still be sent, and says why."""
    pending, told = standing(switch_s=2.0)
    assert not goes(pending, told, 101.0, {"b": 104.1})
    assert goes(pending, told, 101.2, {"b": 104.1})
    assert told == ["the notice runs out in 2.9 s"]


def test_a_notice_of_a_member_to_come_does_not_hurry_it() -> None:
    """Only nodes that the next generation does without count."""
    pending, told = standing()
    assert not goes(pending, told, 101.0, {"a": 101.5})


def test_patience_with_a_copy_ends() -> None:
    """A copy that never comes does not hold the change up for ever."""
    pending, told = standing()
    assert not goes(pending, told, 100.0 + COPY_PATIENCE_S, {})
    assert goes(pending, told, 100.1 + COPY_PATIENCE_S, {})
    assert "has not come in 60 s" in told[0]


def test_a_death_before_the_switch_is_told() -> None:
    """The event says whether the copy was whole, and planning hears that the generation will not be."""
    pending, told = standing()
    failed = pending.overtaken(lambda kind, text, why: told.append(why))
    pending.heard("c", Copied(4, 8, 0.1))
    pending.overtaken(lambda kind, text, why: told.append(why))
    assert failed.generation == PLAN.generation
    assert told[0].startswith("it was not ready")
    assert told[1].startswith("the copy was whole")


def test_without_copying_ahead_the_groups_are_enough() -> None:
    """All of the state is sent at the switch."""
    pending = Pending(PLAN, 100.0, 2.0, ahead=False)
    for node in ("a", "c"):
        pending.heard(node, Prepared(4, 0.01))
    assert goes(pending, [], 101.0, {})


def test_a_survivor_that_dies_after_its_answer_holds_nothing() -> None:
    """Nor does the worker that comes in its place while others still have to answer: it has just begun."""
    recovery = Answers(4, 19, {"a", "b"})
    recovery.answer("a", 19, {0, 1})
    recovery.lose("a")
    assert recovery.awaiting == {"b"}
    recovery.answer("b", 19, {1})
    assert recovery.holds() == {"b": frozenset({1})}


def test_what_stands_at_another_step_is_not_held() -> None:
    """Versions never mix; the worker has answered all the same."""
    recovery = Answers(4, 19, {"a"})
    recovery.answer("a", 18, {0, 1})
    assert not recovery.awaiting
    assert recovery.holds() == {}
