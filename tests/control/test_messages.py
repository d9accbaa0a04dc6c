"""Messages survive the wire, and broken ones are refused with what was expected."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.control import messages

counts = st.integers(0, 2**40)
MESSAGES = st.one_of(
    st.builds(messages.Hello, counts, st.text(), counts, counts),
    st.builds(
        messages.Prepare, counts, counts, st.lists(counts), st.lists(st.lists(counts)), st.just(["h", 1])
    ),
    st.builds(messages.Switch, counts, counts, st.lists(st.just([1, ["h", 2]]))),
    st.builds(
        messages.Vote,
        counts,
        counts,
        st.lists(st.tuples(counts, st.floats(allow_nan=False)).map(list)),
        st.lists(st.tuples(counts, st.floats(allow_nan=False)).map(list)),
    ),
    st.builds(messages.Commit, counts, counts, st.floats(allow_nan=False), st.booleans(), st.booleans()),
    st.builds(messages.Abort, counts),
    st.builds(messages.Aborted, counts, counts, st.lists(counts)),
    st.just(messages.Stop()),
)


@given(MESSAGES)
def test_every_message_comes_back_from_json_as_it_was(message: messages.Message) -> None:
    """Floats too, bit for bit: the gradient's scale must be the same on every worker."""
    assert messages.decode(json.loads(json.dumps(messages.encode(message)))) == message


@pytest.mark.parametrize(
    ("wire", "said"),
    [
        ({"t": "nonsense"}, "unknown message kind 'nonsense'"),
        ({}, "unknown message kind None"),
        ({"t": "abort"}, "must have the fields generation"),
        ({"t": "abort", "generation": 1, "more": 2}, "must have the fields generation"),
    ],
)
def test_a_broken_message_is_refused(wire: dict[str, object], said: str) -> None:
    """The error names the kind and its fields."""
    with pytest.raises(messages.MessageError, match=said):
        messages.decode(wire)
