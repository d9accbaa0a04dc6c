"""A replay goes by events: each loss, notice and arrival at its own time, instances that boot, and spares."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parcae_cli.replay_inputs import replay_setup
from runtime.planning.costs import notice_lead_s
from runtime.planning.trace_formats import parse_trace
from runtime.simulate.replay import PolicyResult, replay
from runtime.simulate.setup import ReplaySetup


def _setup(rows: str, costs: str = "artifact", model: str = "gpt3-6b", **changes: float) -> ReplaySetup:
    start = "".join(f"0,add,n{number:02d}\n" for number in range(25))
    trace = parse_trace(f"time_s,event,instance\n{start}{rows}7200,end,\n", "x")
    setup = replay_setup(trace, model, costs, "last-value", 60.0, 12, 12, 0.0, 0.0)
    return replace(setup, **changes)  # type: ignore[arg-type]


def _run(setup: ReplaySetup, policy: str = "reactive") -> PolicyResult:
    return replay(setup, (policy,)).policies[0]


def _members(policy: PolicyResult) -> int:
    _, pipelines, stages = policy.layouts[0]
    return pipelines * stages


def test_a_loss_is_met_when_it_comes_and_not_at_the_next_interval() -> None:
    """Two losses off the grid of intervals: decided about at their own seconds."""
    policy = _run(_setup("1234.5,kill,n00\n1234.5,kill,n01\n3671.25,kill,n02\n"))
    told = [entry.time_s for entry in policy.log if "lost" in entry.text]
    assert told == [1234.5, 3671.25]
    assert policy.layouts[1][0] == pytest.approx(1234.5 / 60, abs=1e-3)


def test_a_spare_that_goes_costs_nothing_and_one_that_is_there_stands_in() -> None:
    """2x12 on 25: losing the spare changes nothing; losing a member with a spare keeps the layout."""
    quiet = _run(_setup(""))
    assert _members(quiet) == 24 and quiet.gpu_hours["idle"] > 1.9
    hurt = _run(_setup("3600,kill,n03\n"))
    assert {layout[1:] for layout in hurt.layouts} == {(2, 12)}
    assert sum(hurt.migrations.values()) == 1
    spared = _run(_setup("3600,kill,n24\n"))
    assert spared.samples == quiet.samples and sum(spared.migrations.values()) == 0


@pytest.mark.parametrize("policy", ["reactive", "checkpoint", "redundancy"])
def test_nobody_uses_an_instance_before_it_has_booted(policy: str) -> None:
    """Ten minutes to boot, paid from the start: nothing is committed sooner, whatever the policy."""
    late = _run(_setup("", boot_s=600.0), policy)
    first = next(segment for segment in late.segments if segment.samples)
    assert first.start_s >= 600 and late.segments[0].held == 25
    assert late.samples < _run(_setup(""), policy).samples
    assert sum(late.gpu_hours.values()) == pytest.approx(50)


def test_an_arrival_is_used_once_it_is_ready() -> None:
    """Seven more come at a second of their own, and the layout grows when they have booted, no sooner."""
    rows = "".join(f"1801.5,add,m{number}\n" for number in range(7))
    policy = _run(_setup(rows, model="vgg19", boot_s=90.0))
    _, (_, *first), (minute, *grown) = policy.layouts
    assert grown[0] * grown[1] > first[0] * first[1]
    assert minute * 60 == pytest.approx(1801.5 + 90, abs=0.01)


def test_a_notice_is_acted_on_before_the_loss_and_a_kill_gives_none() -> None:
    """With two minutes' notice the change is prepared and nothing is done again; a kill comes as ever."""
    setup = _setup("3600,remove,n03\n", "measured", notice_s=120.0)
    lead_s = min(120.0, notice_lead_s(setup.profile, setup.costs))
    warned = _run(setup)
    times = [entry.time_s for entry in warned.log if "n03 will go" in entry.text]
    assert times == [pytest.approx(3600 - lead_s)]
    assert warned.gpu_hours["lost"] == 0
    killed = _run(_setup("3600,kill,n03\n", "measured", notice_s=120.0))
    assert killed.gpu_hours["lost"] > 0 and warned.samples > killed.samples


def test_a_checkpointing_job_loses_work_only_when_a_member_goes() -> None:
    """A spare may go; a member costs a restart and the work since the last checkpoint, unless warned."""
    quiet, spare = _run(_setup(""), "checkpoint"), _run(_setup("3600,kill,n24\n"), "checkpoint")
    assert spare.migrations == quiet.migrations
    hit = _run(_setup("3600,kill,n03\n"), "checkpoint")
    warned = _run(_setup("3600,remove,n03\n", notice_s=120.0), "checkpoint")
    assert hit.gpu_hours["lost"] > 0 and warned.gpu_hours["lost"] == 0
    assert hit.samples < warned.samples < quiet.samples


def test_work_that_was_lost_is_done_again_also_after_a_time_of_waiting() -> None:
    """All but eleven go and are back after ten minutes: what was not saved is still to be done again."""
    gone = "".join(f"3600,kill,n{number:02d}\n" for number in range(14))
    back = "".join(f"4200,add,b{number:02d}\n" for number in range(14))
    policy = _run(_setup(gone + back), "checkpoint")
    assert policy.gpu_hours["lost"] > 0 and (60.0, 0, 0) in policy.layouts
