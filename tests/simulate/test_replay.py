"""Replays of whole traces: accounts that add up, policies in their order."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parcae_cli.replay_inputs import replay_setup
from runtime.planning.errors import InputError
from runtime.planning.trace import Trace, TraceEvent, synthetic_trace
from runtime.planning.trace_formats import parse_trace
from runtime.simulate.account import CATEGORIES, Account
from runtime.simulate.compare import compare_forecasters
from runtime.simulate.replay import CONTROLLED, POLICIES, PolicyResult, replay
from runtime.simulate.setup import ReplaySetup


@lru_cache(maxsize=64)
def _trace(seed: int, nodes: int = 32, hours: float = 3.0, losses: float = 18.0) -> Trace:
    return synthetic_trace("made-up", seed, hours, nodes, 0.75 * nodes, losses)


def _setup(trace: Trace, model: str = "gpt3-6b", costs: str = "artifact", **changes: float) -> ReplaySetup:
    return replace(replay_setup(trace, model, costs, "default", 60.0, 12, 12, 0.0, 0.0), **changes)  # type: ignore[arg-type]


def _by_name(setup: ReplaySetup, *policies: str) -> dict[str, PolicyResult]:
    return {policy.name: policy for policy in replay(setup, policies or POLICIES).policies}


@pytest.mark.parametrize("costs", ["artifact", "measured"])
@pytest.mark.parametrize("model", ["gpt3-6b", "vgg19"])
def test_hours_add_up_to_the_hours_held(model: str, costs: str) -> None:
    """For every policy, the categories sum to the instance hours held (on-demand: of its own fleet)."""
    trace = _trace(5)
    for policy in replay(_setup(trace, model, costs, notice_s=30.0), POLICIES).policies:
        held = trace.held_s(0, trace.end_s) / 3600
        if policy.name == "on-demand":
            held = max(count for _, count in trace.counts) * trace.end_s / 3600
        assert set(policy.gpu_hours) == set(CATEGORIES)
        assert sum(policy.gpu_hours.values()) == pytest.approx(held)
        assert min(policy.gpu_hours.values()) >= -1e-9


@given(st.integers(0, 10_000), st.sampled_from(["gpt3-6b", "bert-large", "resnet152"]))
@settings(max_examples=8, deadline=None)
def test_nobody_beats_the_bounds(seed: int, model: str) -> None:
    """Whatever the trace: ideal bounds everybody on the same fleet, offline-optimum every planner."""
    by_name = _by_name(_setup(_trace(seed, hours=2.0), model))
    for name in ("parcae", "parcae-oracle", "reactive", "checkpoint", "redundancy", "offline-optimum"):
        assert by_name[name].samples <= by_name["ideal"].samples * (1 + 1e-9)
    for name in ("parcae", "parcae-oracle", "reactive"):
        assert by_name[name].samples <= by_name["offline-optimum"].samples * (1 + 1e-9)


def test_a_calm_fleet_trains_at_full_rate_once_it_has_started() -> None:
    """Nothing happens: the best layout, less the start."""
    trace = parse_trace(
        "time_s,event,instance\n" + "".join(f"0,add,n{n}\n" for n in range(24)) + "7200,end,\n", "calm"
    )
    policy = _by_name(_setup(trace), "parcae")["parcae"]
    assert policy.layouts == ((0.0, 2, 12),)
    assert policy.samples == pytest.approx(11.095 * (7200 - 36.3), rel=1e-3)
    assert sum(policy.migrations.values()) == 0


def test_a_loss_by_hand() -> None:
    """2x12 on 24 loses one: one 1x12 pipeline or so is left, for one migration's pause."""
    rows = "".join(f"0,add,n{n:02d}\n" for n in range(24))
    trace = parse_trace(f"time_s,event,instance\n{rows}3600,kill,n03\n7200,end,\n", "x")
    policy = _by_name(_setup(trace), "parcae")["parcae"]
    assert policy.layouts[0][1:] == (2, 12)
    assert policy.layouts[1][0] == 60 and policy.layouts[1][1] == 1
    assert sum(policy.migrations.values()) == 1
    assert policy.gpu_hours["migrating"] > 0


def test_with_too_few_instances_nothing_runs() -> None:
    """Eleven instances are none for GPT-3, in every policy that depends on them."""
    rows = "".join(f"0,add,n{n}\n" for n in range(11))
    trace = parse_trace(f"time_s,event,instance\n{rows}600,end,\n", "x")
    for policy in replay(_setup(trace), POLICIES).policies:
        assert policy.samples == 0 and policy.usd_per_million_units is None
        assert policy.gpu_hours["idle"] == pytest.approx(11 / 6)


def test_costs_are_hours_times_prices() -> None:
    """Spot hours at the spot price and the anchor's; 32 on demand cost the paper's 2.39 USD a million."""
    rows = "".join(f"0,add,n{n}\n" for n in range(32)) + "600,remove,n1\n3600,end,\n"
    trace = parse_trace(f"time_s,event,instance\n{rows}", "x")
    by_name = _by_name(_setup(trace), "parcae", "checkpoint", "on-demand")
    hours, held = trace.end_s / 3600, trace.held_s(0, trace.end_s) / 3600
    assert by_name["checkpoint"].usd == pytest.approx(held * 0.918)
    assert by_name["parcae"].usd == pytest.approx(held * 0.918 + hours * 0.68)
    assert by_name["on-demand"].usd_per_million_units == pytest.approx(2.39, abs=0.01)


def test_the_same_replay_twice_is_the_same() -> None:
    """Figures do not depend on anything but the set-up."""
    first, second = (_by_name(_setup(_trace(4)), "parcae", "redundancy", "checkpoint") for _ in range(2))
    for name, policy in first.items():
        assert (policy.samples, policy.layouts, policy.log) == (
            second[name].samples,
            second[name].layouts,
            second[name].log,
        )


def test_a_notice_never_makes_our_own_runtime_worse() -> None:
    """Two minutes' warning before each removal: fewer steps done again, shorter stops."""
    trace = _trace(9)
    blind = _by_name(_setup(trace, costs="measured"), "parcae")["parcae"]
    warned = _by_name(_setup(trace, costs="measured", notice_s=120.0), "parcae")["parcae"]
    assert warned.gpu_hours["lost"] < blind.gpu_hours["lost"]
    assert warned.migrations["rollback"] == 0


def test_instances_that_boot_slowly_are_paid_and_idle() -> None:
    """Five minutes to boot: held from the start, used later."""
    trace = _trace(3, hours=1.0)
    late = _by_name(_setup(trace, boot_s=300.0), "parcae")["parcae"]
    soon = _by_name(_setup(trace), "parcae")["parcae"]
    assert late.samples < soon.samples
    assert sum(late.gpu_hours.values()) == pytest.approx(sum(soon.gpu_hours.values()))


@pytest.mark.parametrize("model", ["gpt3-6b", "gpt2-1.5b", "bert-large", "resnet152", "vgg19"])
def test_the_planner_is_close_to_the_optimum_and_no_worse_than_reacting(model: str) -> None:
    """On traces made up with several seeds and densities."""
    for seed, losses in ((21, 8.0), (22, 18.0)):
        by_name = _by_name(
            _setup(_trace(seed, 32, 4.0, losses), model), "parcae", "reactive", "offline-optimum"
        )
        ours = by_name["parcae"].samples
        assert ours >= 0.985 * by_name["offline-optimum"].samples
        # who is hit is luck, worth a few tenths of a percent in four hours
        assert ours >= 0.995 * by_name["reactive"].samples


def test_forecasters_are_ranked_by_what_a_job_commits() -> None:
    """The best first, errors beside it."""
    scores = compare_forecasters(_setup(_trace(1, hours=1.0)))
    assert [score.samples for score in scores] == sorted((score.samples for score in scores), reverse=True)
    assert {"last-value", "arima"} <= {score.name for score in scores}
    assert all(0 <= score.drop_recall <= 1 and score.l1_percent >= 0 for score in scores)


moments = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 3.0, 20.0, 60.0, 300.0]), st.integers(0, 5), st.booleans()),
    min_size=1,
    max_size=40,
)


@given(
    moments,
    st.sampled_from(["gpt-tiny measured", "vgg19 measured", "vgg19 artifact", "bert-large artifact"]),
    st.sampled_from([0.0, 30.0]),
    st.sampled_from([0.0, 45.0]),
    st.integers(0, 2),
)
@settings(max_examples=25, deadline=None)
def test_any_trace_can_be_replayed(
    story: list[tuple[float, int, bool]], case: str, notice_s: float, boot_s: float, seed: int
) -> None:
    """Instances that come and go at any time, come again, or go as they come: the books always balance.

    For every policy the hours add up to those held, and the money is those hours at their prices.
    """
    model, costs = case.split()
    now_s, present, events = 0.0, set[str](), []
    for wait_s, pick, killed in story:
        now_s += wait_s
        name = f"i{pick}"
        if name in present:
            events.append(TraceEvent(now_s, "kill" if killed else "remove", name))
        else:
            events.append(TraceEvent(now_s, "add", name))
        present ^= {name}
    trace = Trace("story", tuple(events), now_s + 100)
    setup = _setup(trace, model, costs, notice_s=notice_s, boot_s=boot_s, interval_s=17.3).seeded(seed)
    by_name = _by_name(setup)
    price, hours = setup.model.price, trace.end_s / 3600
    for policy in by_name.values():
        held = trace.held_s(0, trace.end_s) / 3600
        due = {"spot": held * price.spot_usd_per_hour, "on_demand": 0.0, "anchor": 0.0}
        if policy.name in CONTROLLED:
            due["anchor"] = setup.anchor_usd_per_hour * hours
        if policy.name == "on-demand":
            held = setup.max_nodes * hours
            due = {"spot": 0.0, "on_demand": held * price.on_demand_usd_per_hour, "anchor": 0.0}
        assert sum(policy.gpu_hours.values()) == pytest.approx(held)
        assert policy.usd_by == pytest.approx(due) and policy.usd == pytest.approx(sum(due.values()))
        assert min(policy.gpu_hours.values()) >= -1e-9
    for name in CONTROLLED:
        assert by_name[name].samples <= by_name["ideal"].samples * (1 + 1e-9)


def test_unknown_policies_are_refused() -> None:
    """With those that there are."""
    with pytest.raises(InputError, match="no policy 'magic'; there are parcae"):
        replay(_setup(_trace(1)), ("magic",))


def test_decisions_are_timed_and_explained() -> None:
    """Every command of a controlled policy is in its log with a reason."""
    result = replay(_setup(_trace(1)), ("parcae", "reactive"))
    assert result.planner.decisions > 100 and result.planner.p95_ms >= result.planner.median_ms > 0
    for policy in result.policies:
        assert policy.name in CONTROLLED and policy.log
        assert all(entry.text for entry in policy.log)


def test_the_books_refuse_more_use_than_is_held() -> None:
    """An instance is one thing at a time."""
    account = Account()
    with pytest.raises(ValueError, match="5 instances used of 4"):
        account.spend(0, 1, 4, uses={"effective": 5})


@pytest.mark.parametrize("gpus", [2, 4])
def test_instances_with_several_gpus_lose_them_together(gpus: int) -> None:
    """Hours are GPU hours, prices are per instance, and nobody beats the ideal."""
    trace = _trace(7, nodes=8, hours=1.0)
    setup = replay_setup(trace, "gpt-tiny", None, "default", 60.0, 12, 12, 0.0, 0.0, gpus=gpus)
    by_name = _by_name(setup)
    held = trace.held_s(0, trace.end_s) / 3600
    for name, policy in by_name.items():
        if name != "on-demand":
            assert sum(policy.gpu_hours.values()) == pytest.approx(held * gpus)
            assert policy.samples <= by_name["ideal"].samples * (1 + 1e-9)
    assert by_name["ideal"].usd == pytest.approx(held * setup.model.price.spot_usd_per_hour)
    assert by_name["parcae"].samples >= 0.95 * by_name["ideal"].samples
    assert all(d * p <= gpus * setup.max_nodes for _, d, p in by_name["parcae"].layouts)
    assert any(d * p > setup.max_nodes for _, d, p in by_name["parcae"].layouts)
    assert "no stage is lost before" in by_name["parcae"].log[0].text


def test_a_trace_by_workers_has_the_same_instants() -> None:
    """Workers come and go with their instance, first the first of each, then the second."""
    story = (TraceEvent(0, "add", "a"), TraceEvent(0, "add", "b"), TraceEvent(9, "remove", "a"))
    trace = Trace("t", story, 20)
    events = trace.with_gpus(2).events
    assert [event.name for event in events] == ["a/0", "b/0", "a/1", "b/1", "a/0", "a/1"]
    assert [event.action for event in events[-2:]] == ["remove", "remove"]
    assert trace.with_gpus(1) is trace
