"""Who is here, and when a notice has to be acted on."""

from __future__ import annotations

from dataclasses import replace

from cloud.types import Instance, InstanceState, Pool
from runtime.control.messages import Hello
from runtime.control.training.roster import Roster
from runtime.control.training.training import ABORT_TIMEOUT_S, STEP_TIMEOUT_S, Pace
from runtime.planning.types import Layout

HELLO = Hello(1, "127.0.0.1", 1, 2)


def roster_with(*nodes: str) -> Roster:
    roster = Roster()
    for node in nodes:
        roster.join(node, HELLO)
        roster.make_ready(node)
    return roster


def test_a_noticed_node_trains_on_until_its_lead() -> None:
    """It is named once, `lead_s` before its deadline, and the loop is told when to look."""
    roster = roster_with("a", "b")
    roster.notices["a"] = 100.0
    assert roster.next_due_s(10.0) == 90.0
    assert roster.due(89.9, 10.0) == []
    assert roster.due(90.0, 10.0) == ["a"]
    assert roster.due(95.0, 10.0) == []
    assert roster.next_due_s(10.0) == float("inf")


def test_a_new_worker_of_a_noticed_node_is_named_again() -> None:
    """The node's worker died and another joined: planning must hear of the notice once more."""
    roster = roster_with("a")
    roster.notices["a"] = 100.0
    assert roster.due(99.0, 10.0) == ["a"]
    roster.lose("a")
    roster.join("a", HELLO)
    assert roster.due(99.0, 10.0) == []  # not ready yet
    roster.make_ready("a")
    assert roster.due(99.0, 10.0) == ["a"]


def test_only_a_notice_that_was_acted_on_is_withdrawn() -> None:
    """A node that outlives its deadline counts again, if it had been counted out."""
    roster = roster_with("a", "b", "c")
    roster.notices.update(a=100.0, b=100.0, c=300.0)
    roster.workers["b"].ready = False
    assert roster.due(95.0, 10.0) == ["a"]
    assert roster.spared(200.0) == ["a"]
    assert set(roster.notices) == {"c"}


def test_changes_are_told_once() -> None:
    """Nodes lost and joined since the last generation; a worker that was never ready is neither."""
    roster = roster_with("a", "b")
    roster.join("c", HELLO)
    assert not roster.lose("c")
    assert roster.lose("a")
    assert roster.changes() == (("a",), ("a", "b"))
    assert roster.changes() == ((), ())


def test_the_lead_grows_with_the_steps() -> None:
    """A second at least, what the plan asks for, or six ordinary steps."""
    pace = Pace()
    assert pace.notice_lead_s(0.2) == 1.0
    assert pace.notice_lead_s(30.0) == 30.0
    for now_s in (0.0, 2.0, 4.0):
        pace.commit(now_s, fresh=False, layout=Layout(1, 1))
    assert pace.notice_lead_s(0.2) == 12.0


def test_a_restarted_worker_is_neither_lost_nor_joined() -> None:
    """It is awaited until it is back; a node with a notice is not waited for."""
    roster = roster_with("a", "b", "c")
    assert roster.changes() == ((), ("a", "b", "c"))
    roster.notices["c"] = 100.0
    roster.restart(["a", "b", "c"])
    for node in ("a", "b", "c"):
        assert roster.restarting(node) and roster.lose(node)
    for node in ("a", "b"):
        assert roster.awaited
        roster.join(node, HELLO)
        roster.make_ready(node)
    assert not roster.awaited
    assert roster.changes() == ((), ())
    roster.lose("a")
    assert roster.changes() == (("a",), ())


def test_the_next_instance_of_a_name_has_not_been_noticed() -> None:
    """A notice ends with its instance: the name may come again, and its worker is as good as any."""
    pool = Pool("zone", "type", 1, 0.0, 0.0)
    instance = Instance("i-1", "a", "job", "token", pool, InstanceState.RUNNING, 0.0)
    roster = roster_with("a")
    roster.notice("a", 100.0)
    assert roster.due(99.0, 10.0) == ["a"]
    roster.lose("a")
    roster.instance(replace(instance, state=InstanceState.TERMINATED))
    roster.instance(replace(instance, id="i-2"))
    roster.join("a", HELLO)
    roster.make_ready("a")
    assert roster.due(101.0, 10.0) == []


def test_a_step_that_only_takes_long_is_given_more_time_at_every_attempt() -> None:
    """A model whose first step takes minutes would never begin if each attempt were cut off alike."""
    pace = Pace()
    assert pace.timeout_s == STEP_TIMEOUT_S
    pace.stuck()
    pace.stuck()
    assert pace.timeout_s == 4 * STEP_TIMEOUT_S
    pace.commit(1.0, fresh=True, layout=Layout(1, 1))
    assert pace.timeout_s == STEP_TIMEOUT_S


def test_a_survivor_with_long_steps_has_time_to_answer_an_abort() -> None:
    """It may be in the middle of a micro-batch: two steps, four seconds at least."""
    pace = Pace()
    assert pace.abort_timeout_s == ABORT_TIMEOUT_S
    for second in range(0, 60, 10):
        pace.commit(float(second), fresh=False, layout=Layout(1, 1))
    assert pace.abort_timeout_s == 20.0


def test_an_instance_that_lacks_a_worker_for_long_is_named_once() -> None:
    """Not when it is whole again, nor when no worker of it can be heard at all; one that never was whole gets
    more time, and what comes again under its name has all of it.
    """
    roster = Roster(2)
    for node in ("a/0", "b/0", "b/1", "c/0", "c/1", "d/0", "d/1"):
        roster.join(node, HELLO)
        roster.make_ready(node)
    for node in ("b/1", "c/1", "d/0", "d/1"):
        roster.lose(node)
    assert roster.lame(100.0, 10.0, 500.0) == []
    roster.join("c/1", HELLO)
    assert roster.lame(105.0, 10.0, 500.0) == []
    roster.make_ready("c/1")
    roster.postpone(60.0)
    assert roster.lame(169.0, 10.0, 500.0) == []
    roster.lose("c/1")
    assert roster.lame(170.0, 10.0, 500.0) == ["b"]
    assert roster.lame(179.0, 10.0, 500.0) == []
    assert roster.lame(180.0, 10.0, 500.0) == ["c"]
    assert roster.lame(599.0, 10.0, 500.0) == []
    assert roster.lame(660.0, 10.0, 500.0) == ["a"]
    assert roster.lame(999.0, 10.0, 500.0) == []
    instance = Instance(
        "i-1", "a", "job", "token", Pool("z", "t", 2, 0.0, 0.0), InstanceState.TERMINATED, 0.0
    )
    roster.lose("a/0")
    roster.instance(instance)
    roster.join("a/0", HELLO)
    assert roster.lame(1000.0, 10.0, 500.0) == []
    assert roster.lame(1500.0, 10.0, 500.0) == ["a"]
