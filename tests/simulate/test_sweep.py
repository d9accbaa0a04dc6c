"""Many replays at once: seeds and what they change, sweeps and what they vary."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parcae_cli.errors import UsageError
from parcae_cli.replay_inputs import replay_setup
from parcae_cli.replay_options import seeds_of, sweep_of
from runtime.planning.errors import InputError
from runtime.planning.trace import ADD, Trace, TraceEvent, synthetic_trace
from runtime.simulate.replay import replay
from runtime.simulate.setup import ReplaySetup
from runtime.simulate.sweep import grid, run_grid, run_seeds, spread, varied


def _setup(hours: float = 1.0, boot_s: float = 0.0) -> ReplaySetup:
    trace = synthetic_trace("made-up", 3, hours, 32, 24, 18.0)
    return replay_setup(trace, "gpt3-6b", "artifact", "default", 60.0, 12, 12, 0.0, boot_s)


@given(st.integers(0, 1000), st.integers(1, 10_000), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_other_luck_and_a_smaller_fleet_keep_to_the_trace(number: int, seed: int, most: int) -> None:
    """Redrawn: as many come and go at the same times. Capped: never more than wanted, all of it taken up."""
    trace = synthetic_trace("s", number, 2.0, 16, 11, 25.0)
    other, small = trace.redrawn(seed), trace.capped(most)
    assert other.counts == trace.counts and other.end_s == trace.end_s
    assert Counter((event.time_s, event.action) for event in other.events) == Counter(
        (event.time_s, event.action) for event in trace.events
    )
    for time_s, count in trace.counts:
        assert small.available(time_s) == min(count, most)
    for made in (other, small):
        present: set[str] = set()
        for event in made.events:
            assert (event.action == ADD) == (event.name not in present)
            present ^= {event.name}


def test_every_instance_is_hit_alike_over_the_seeds() -> None:
    """One of eight goes: over 800 seeds each is the victim about a hundred times, not always the same."""
    events = [TraceEvent(0.0, ADD, f"n{index}") for index in range(8)]
    trace = Trace("x", (*events, TraceEvent(60.0, "kill", "n3")), 120.0)
    hit = Counter(trace.redrawn(seed).events[-1].name for seed in range(1, 801))
    assert len(hit) == 8 and max(hit.values()) < 145 and min(hit.values()) > 60


def test_boot_times_are_drawn_about_their_mean() -> None:
    """Seed 0 takes the time as it is; another seed draws one for each instance, the same every time."""
    plain, lucky = _setup(boot_s=100.0), _setup(boot_s=100.0).seeded(4)
    names = [f"n{index}" for index in range(2000)]
    assert {plain.boot_of(name) for name in names} == {100.0}
    times = spread([lucky.boot_of(name) for name in names])
    assert times.mean == pytest.approx(100, rel=0.03) and times.sd == pytest.approx(25, rel=0.1)
    assert lucky.boot_of("n1") == lucky.boot_of("n1") != plain.seeded(5).boot_of("n1")


def test_several_seeds_give_means_and_their_spread() -> None:
    """Every figure is the mean of what each seed alone gives, whichever process worked it out."""
    setup, policies = _setup(), ("parcae", "checkpoint", "ideal")
    together = run_seeds(setup, policies, (0, 1, 2))
    alone = [replay(setup.seeded(seed), policies) for seed in (0, 1, 2)]
    assert together.seeds == (0, 1, 2)
    for number, policy in enumerate(together.policies):
        runs = [result.policies[number] for result in alone]
        assert [figures.samples for figures in policy.by_seed] == [run.samples for run in runs]
        assert policy.samples == pytest.approx(sum(run.samples for run in runs) / 3)
        assert sum(policy.gpu_hours.values()) == pytest.approx(sum(runs[0].gpu_hours.values()))
        assert policy.layouts == runs[0].layouts
    parcae, _, ideal = together.policies
    assert len({figures.samples for figures in parcae.by_seed}) > 1
    assert spread([figures.samples for figures in ideal.by_seed]).sd == 0


def test_a_sweep_replays_every_combination() -> None:
    """Each cell is what a replay with those values gives; the first key turns slowest."""
    setup = _setup()
    cells = run_grid(setup, ("parcae",), (0,), grid({"fleet": (16.0, 24.0), "interval": (30.0, 60.0)}))
    assert [dict(cell.values) for cell in cells] == [
        {"fleet": fleet, "interval": interval} for fleet in (16, 24) for interval in (30, 60)
    ]
    assert (
        cells[2].result.policies[0].samples
        == replay(varied(setup, (("fleet", 24.0), ("interval", 30.0))), ("parcae",)).policies[0].samples
    )
    assert cells[0].result.trace.max_available == 16
    assert (varied(setup, (("notice", 30.0),)).notice_s, varied(setup, (("boot", 9.0),)).boot_s) == (30, 9)
    assert varied(setup, (("lookahead", 4.0),)).lookahead == 4


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("colour", 1.0, "'colour' cannot be swept; lookahead, interval"),
        ("lookahead", 2.5, "lookahead=2.5: must be a whole number above 0"),
        ("interval", 0.0, "interval=0: must be above 0"),
        ("notice", -1.0, "notice=-1: must be at least 0"),
        ("fleet", 0.0, "fleet=0: must be a whole number above 0"),
    ],
)
def test_values_that_cannot_be_are_refused(key: str, value: float, said: str) -> None:
    """Naming key and value."""
    with pytest.raises(InputError, match=said):
        varied(_setup(), ((key, value),))


def test_options_that_stand_for_many_replays() -> None:
    """A seed, a range, a count; keys with their values."""
    assert (seeds_of("3", None), seeds_of("1..4", None), seeds_of("2", 3)) == ((3,), (1, 2, 3, 4), (2, 3, 4))
    assert sweep_of(["fleet=8,16", "notice=0,30,0"]) == {"fleet": (8, 16), "notice": (0, 30)}


@pytest.mark.parametrize(
    ("seed", "count", "sweep", "said"),
    [
        ("x", None, [], "--seed x: must be a number from 0 on, or a range like 1..5"),
        ("5..1", None, [], "the range is empty. Give 1..5"),
        ("1..5", 3, [], "Give one of them"),
        ("0", 2000, [], "2000 seeds are more than 1000"),
        ("0", None, ["fleet"], "must be KEY=V1,V2,.."),
        ("0", None, ["colour=1"], "no key 'colour'; there are lookahead"),
        ("0", None, ["fleet=8,many"], "'many' is not a number"),
        ("0", None, ["fleet=8,nan"], "'nan' is not a number"),
        ("0", None, ["fleet=8", "fleet=9"], "fleet is given twice. Write fleet=V1,V2,.. once"),
    ],
)
def test_bad_options_say_what_is_wrong(seed: str, count: int | None, sweep: list[str], said: str) -> None:
    """And what would be right."""
    with pytest.raises(UsageError) as caught:
        seeds_of(seed, count)
        sweep_of(sweep)
    assert said in str(caught.value)
