"""The numbered lines between a controller and an agent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.control.fleet.link import Link, split_lines


@given(st.lists(st.sampled_from(["send", "send back", "deliver", "cut", "beat"]), max_size=60), st.data())
def test_every_line_arrives_once_and_in_order_whatever_is_cut(
    actions: list[str], data: st.DataObject
) -> None:
    """However a connection is cut, after the next one both sides have exactly what was sent, in order."""
    near, far = Link(), Link()
    to_far, to_near = bytearray(), bytearray()
    sent: dict[str, list[bytes]] = {"far": [], "near": []}
    got: dict[str, list[bytes]] = {"far": [], "near": []}

    def deliver(name: str, link: Link, wire: bytearray, count: int) -> None:
        for line in split_lines(wire)[:count]:
            if (frame := link.accept(line)) is not None:
                got[name].append(frame[1])

    def reconnect() -> None:
        have_near, have_far = near.received, far.received
        to_far[:], to_near[:] = near.unseen(have_far), far.unseen(have_near)

    for number, action in enumerate(actions):
        payload = b'{"n": %d}' % number
        if action == "send":
            to_far += near.frame(b"w1", payload)
            sent["far"].append(payload)
        elif action == "send back":
            to_near += far.frame(b"a", payload)
            sent["near"].append(payload)
        elif action == "beat":
            to_far += near.beat()
        elif action == "deliver":
            deliver("far", far, to_far, 10**6)
            deliver("near", near, to_near, 10**6)
        else:  # some lines of what was on its way arrived, the rest is lost with the connection
            deliver("far", far, to_far, data.draw(st.integers(0, 5)))
            deliver("near", near, to_near, data.draw(st.integers(0, 5)))
            reconnect()
    reconnect()
    deliver("far", far, to_far, 10**6)
    deliver("near", near, to_near, 10**6)
    assert got == sent
    far.accept(near.beat()[:-1])
    near.accept(far.beat()[:-1])
    assert near.kept == far.kept == 0


def test_a_skipped_number_is_refused() -> None:
    """A line that cannot follow the last one is an error, not silently taken."""
    link = Link()
    with pytest.raises(ValueError, match="line 2 came after line 0"):
        link.accept(b"2 0 w1 {}")
    with pytest.raises(ValueError):
        link.accept(b"not a line")


@given(st.lists(st.binary(max_size=20).filter(lambda text: b"\n" not in text), max_size=8), st.data())
def test_lines_come_out_whole_however_the_bytes_arrive(lines: list[bytes], data: st.DataObject) -> None:
    """A receive buffer gives complete lines only, and keeps the rest."""
    stream = b"".join(line + b"\n" for line in lines)
    buffer, out, at = bytearray(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, 7))
        buffer += stream[at : at + size]
        at += size
        out += split_lines(buffer)
    assert out == lines
    assert not buffer
