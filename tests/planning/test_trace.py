"""Traces in every format, and what is wrong with bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.planning.errors import InputError
from runtime.planning.trace import ADD, Trace, synthetic_trace
from runtime.planning.trace_formats import parse_trace

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
OWN = "time_s,event,instance\n0,add,a\n0,add,b\n60,remove,a\n90,add,c\n120,kill,b\n"


def test_our_own_format() -> None:
    """Names, kinds and times come through; the last state lasts as long as the shortest gap."""
    trace = parse_trace(OWN, "own.csv")
    assert [(event.time_s, event.action, event.name) for event in trace.events][2:] == [
        (60, "remove", "a"),
        (90, "add", "c"),
        (120, "kill", "b"),
    ]
    assert trace.end_s == 150
    assert trace.counts == ((0, 2), (60, 1), (90, 2), (120, 1))


def test_an_end_row_says_how_long_the_last_state_lasted() -> None:
    """`end` is a row of ours, and survives being written and read again."""
    trace = parse_trace(OWN + "600,end,\n", "own.csv")
    assert trace.end_s == 600
    assert parse_trace(trace.as_csv(), "own.csv") == trace


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("0,add,a\n0,add,b\n60000,remove,a\n", ((0, 2), (60, 1))),
        ("0,3\n60000,1\n120000,2\n", ((0, 3), (60, 1), (120, 2))),
        (
            "2024-05-01,00:00:00,3\n2024-05-01,00:01:00,1\n2024-05-01,00:02:00,2\n",
            ((0, 3), (60, 1), (120, 2)),
        ),
        (
            "2024-05-01 23:59:00 3\n2024-05-02 00:00:00 1\n2024-05-02 00:01:00 2\n",
            ((0, 3), (60, 1), (120, 2)),
        ),
        ('{"metadata": {"gap_seconds": 60}, "data": [3, 1, 2]}', ((0, 3), (60, 1), (120, 2))),
    ],
    ids=["named, in ms", "counts, in ms", "dated, with commas", "dated, over midnight", "JSON"],
)
def test_every_other_format_is_recognised(text: str, counts: tuple[tuple[float, int], ...]) -> None:
    """Without a flag, by what it looks like."""
    assert parse_trace(text, "x").counts == counts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x.csv: the trace is empty"),
        ("\n \n", "x.csv: the trace is empty"),
        ("time_s,event,instance\n", "x.csv:1: the trace is empty"),
        ("time_s,event,instance\n9,add,a\n3,add,b\n", "x.csv:3: the time goes backwards"),
        ("time_s,event,instance\n0,remove,a\n", "x.csv:2: remove of a, which was never added"),
        ("time_s,event,instance\n0,add,a\n1,add,a\n", "x.csv:3: a is added, but it is there already"),
        ("time_s,event,instance\n0,explode,a\n", "x.csv:2: the event 'explode'"),
        ("time_s,event,instance\nsoon,add,a\n", "x.csv:2: 'soon' is not a time"),
        ("time_s,event,instance\nnan,add,a\n", "x.csv:2: the time nan"),
        ("time_s,event,instance\n-1,add,a\n", "x.csv:2: the time -1"),
        ("time_s,event,instance\n0,add\n", "x.csv:2: three cells needed"),
        ("time_s,event,instance\n0,add,\n", "x.csv:2: the instance has no name"),
        ("hello world\n", "x.csv:1: 'hello world' is in no known format"),
        ("0,3\n60000,-1\n", "x.csv:2: '-1' is not a whole number"),
        ("0,3\n60000,1.5\n", "x.csv:2: '1.5' is not a whole number"),
        ("60000,3\n0,1\n", "x.csv:2: the time goes backwards"),
        ('{"data": [1]}', "metadata.gap_seconds"),
        ('{"metadata": {"gap_seconds": 60}, "data": []}', "data: the trace is empty"),
        ('{"metadata": {"gap_seconds": 60}, "data": [1, "x"]}', r"data\[1\]: 'x' is not a number"),
        ("{oops", "x.csv:1: is not JSON"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(text: str, message: str) -> None:
    """The message names the file, the line or key, and the problem."""
    with pytest.raises(InputError, match=message):
        parse_trace(text, "x.csv")


@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(0, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_names_made_up_for_counts_give_the_same_counts(counts: list[int], seed: int, newest: bool) -> None:
    """Whoever is chosen to go, as many are there as the trace says."""
    text = "".join(f"{index * 60000},{count}\n" for index, count in enumerate(counts))
    trace = parse_trace(text, "x", victims="newest" if newest else "random", seed=seed)
    assert [trace.available(index * 60) for index in range(len(counts))] == counts
    assert trace == parse_trace(text, "x", victims="newest" if newest else "random", seed=seed)


@given(st.floats(0, 100), st.floats(1, 100))
@settings(max_examples=40, deadline=None)
def test_a_slice_keeps_its_counts(start: float, length: float) -> None:
    """What was there at the start of a slice is there at its time 0."""
    trace = synthetic_trace("s", 3, 4.0, 16, 10, 20.0)
    part = trace.sliced(start, start + length)
    assert part.end_s == pytest.approx(min(length * 60, trace.end_s - start * 60))
    for offset in (0.0, part.end_s * 0.37, part.end_s * 0.9):
        assert part.available(offset) == trace.available(start * 60 + offset)
    assert part.held_s(0, part.end_s) == pytest.approx(trace.held_s(start * 60, start * 60 + part.end_s))


def test_a_slice_outside_the_trace_is_refused() -> None:
    """It says how long the trace is."""
    with pytest.raises(InputError, match=r"2\.5 minutes"):
        parse_trace(OWN, "x").sliced(5, 9)


def test_the_generator_repeats_itself_by_seed() -> None:
    """The same seed makes the same trace, another seed another."""
    assert synthetic_trace("s", 1, 4, 8, 6, 10) == synthetic_trace("s", 1, 4, 8, 6, 10)
    assert synthetic_trace("s", 1, 4, 8, 6, 10).events != synthetic_trace("s", 2, 4, 8, 6, 10).events


@pytest.mark.parametrize("path", sorted((TEMPLATES / "traces").glob("*.csv")), ids=lambda path: path.stem)
def test_the_shipped_traces_are_good(path: Path) -> None:
    """Each can be read and has losses and gains."""
    figures = parse_trace(path.read_text(), path.name).statistics
    assert figures.preempted and figures.allocated


def test_the_demo_trace_has_enough_happening_early() -> None:
    """Eight nodes: a dozen are taken, some unannounced, eight are given, two are always there."""
    trace = parse_trace((TEMPLATES / "traces/demo-8.csv").read_text(), "demo")
    early = [event for event in trace.events if 0 < event.time_s <= 720]
    assert trace.statistics.preempted >= 12 and trace.statistics.allocated >= 8
    assert sum(event.action == "kill" for event in early) >= 3
    assert sum(event.action != ADD for event in early) >= 10
    assert min(count for _, count in trace.counts) == 2 and max(count for _, count in trace.counts) == 8


def test_interval_figures() -> None:
    """Counts are taken at the start of each interval, means over it."""
    trace = Trace("x", parse_trace(OWN, "x").events, 180)
    assert trace.interval_counts(60) == (2, 1, 1)
    assert trace.interval_means(60) == pytest.approx((2, 1.5, 1))


def test_every_life_of_an_instance_has_a_name_of_its_own() -> None:
    """One that comes again is another machine, and one that goes as it comes never was."""
    rows = "0,add,a\n60,remove,a\n60,add,a\n90,add,b\n90,kill,b\n120,remove,a\n"
    trace = parse_trace("time_s,event,instance\n" + rows, "x")
    assert [(event.time_s, event.action, event.name) for event in trace.lives.events] == [
        (0, "add", "a"),
        (60, "remove", "a"),
        (60, "add", "a#2"),
        (120, "remove", "a#2"),
    ]
