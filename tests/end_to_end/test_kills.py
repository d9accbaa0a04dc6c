"""A worker that dies at any point of a step or of a change costs the job nothing but time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.harness import STEPS, Finished, assert_equal, train

pytestmark = pytest.mark.timeout(150)


def test_workers_killed_at_every_point_of_a_step(undisturbed: Finished, tmp_path: Path) -> None:
    """SIGKILL in forward, backward, reduction, around the vote, at the commit and in the optimiser."""
    points = ["forward", "backward", "reduce", "before_vote", "after_vote", "commit", "optimiser"]
    faults = [
        {"node": f"node{index + 1}", "step": 6 + 7 * index, "point": point}
        for index, point in enumerate(points)
    ]
    run = train(tmp_path, "points", nodes=8, steps=STEPS, faults=tuple(faults))
    assert_equal(run, undisturbed, tmp_path)
    lost = sorted(event["text"] for event in run.events if event["kind"] == "lost")
    assert lost == [f"node{index + 1} is gone" for index in range(len(points))]


@pytest.mark.parametrize("point", ["prepare", "switch", "send", "receive", "abort"])
def test_a_worker_killed_in_the_middle_of_a_change(undisturbed: Finished, tmp_path: Path, point: str) -> None:
    """Whoever dies while groups are built, state is sent or received, or another death is recovered from."""
    # node1's death and the late nodes make changes; the second fault falls into one of them
    second = "node3" if point in ("send", "abort") else "late"
    faults = ({"node": "node1", "step": 10, "point": "backward"}, {"node": second, "point": point})
    # of five nodes one is a spare: the third pipeline needs node1 again and the late one, whichever is first
    first = 6 if second == "node3" else 5
    trace = "".join(f"0,add,node{k}\n" for k in range(1, first + 1)) + "40,add,late\n90,add,later\n"
    ahead = point not in ("send", "receive")  # which nobody does at the switch when all was copied before
    run = train(
        tmp_path, "change", trace=trace, nodes=8, steps=STEPS, speed=60, faults=faults, copy_ahead=ahead
    )
    assert_equal(run, undisturbed, tmp_path)
    lost = [event["text"] for event in run.events if event["kind"] == "lost"]
    assert {"node1 is gone", f"{second} is gone"} <= set(lost)


@pytest.mark.parametrize("point", ["copy_send", "copy", "replay"])
def test_workers_killed_while_state_is_copied_ahead(
    undisturbed: Finished, tmp_path: Path, point: str
) -> None:
    """A source dies in the middle of a copy, a receiver in one, or before it replays a step on its copy."""
    old, new = [f"node{k}" for k in range(1, 5)], ["late", "later", "last"]
    dying = old if point == "copy_send" else new
    faults = tuple({"node": node, "point": point} for node in dying)
    trace = "".join(f"0,add,{node}\n" for node in old) + "40,add,late\n70,add,later\n100,add,last\n"
    trace += "110,remove,node3\n"
    run = train(tmp_path, "copies", trace=trace, nodes=7, steps=STEPS, speed=60, faults=faults)
    assert_equal(run, undisturbed, tmp_path)
    lost = {event["text"] for event in run.events if event["kind"] == "lost" and "node3" not in event["text"]}
    assert lost & {f"{node} is gone" for node in dying}
    assert sum(record.transfer.bytes_ahead for record in run.result.migrations) > 0
