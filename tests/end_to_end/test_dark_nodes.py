"""Nodes that go dark: nothing comes from them any more, not even the end of a connection."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import pytest

from cloud.local.provider import LocalProvider
from runtime.control.fleet.link_times import LinkTimes
from runtime.control.job.journal import Journal
from tests.end_to_end import own_network
from tests.end_to_end.harness import STEPS, Finished, assert_equal, train

pytestmark = pytest.mark.timeout(120)
DARK_AT = (10, 30)  # steps


def train_in_the_dark(home: Path, told: Connection) -> None:
    """In a process of its own, in its own network: two nodes go dark, one after the other."""
    own_network.enter()
    gone: list[str] = []

    def watch(step: int, provider: LocalProvider) -> None:
        if step in DARK_AT:
            nodes = Journal(home).read_snapshot("dark")["nodes"]
            members = [node["name"] for node in nodes if node["position"] and node["state"] == "running"]
            gone.append(next(name for name in members if name not in gone))
            own_network.go_dark(provider, gone[-1])

    told.send((train(home, "dark", watch, nodes=6, steps=STEPS), gone))


@pytest.mark.skipif(bool(own_network.why_not()), reason=f"needs a network: {own_network.why_not()}")
def test_nodes_whose_packets_are_dropped_are_found_by_their_silence(
    undisturbed: Finished, tmp_path: Path
) -> None:
    """Each costs its step and the time that silence is borne for; weights are those of a quiet run."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    # not forked: this process has threads and, by now, much else
    process = multiprocessing.get_context("spawn").Process(target=train_in_the_dark, args=(tmp_path, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(90), "the job has not ended"
        run, gone = cast(tuple[Finished, list[str]], ours.recv())
    finally:
        process.join(5)
        process.kill()
    assert_equal(run, undisturbed, tmp_path)
    found = [event for event in run.events if event["kind"] == "lost"]
    assert {event["text"] for event in found} == {f"{name} is gone" for name in gone}
    changes = [record for record in run.result.migrations if record.nodes_lost]
    times = LinkTimes()
    # the silence, the step that is done again, and what a laden machine adds
    assert all(record.pause_s < times.mute_s + times.beat_s + 5.0 for record in changes)
