"""Faults of every kind, dozens in one run, several at a time: the end is that of a quiet run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.end_to_end import storm

STEPS = 100
SEED = int(os.environ.get("PARCAE_CHAOS_SEED", "0"))


@pytest.mark.timeout(240)
def test_a_storm_changes_nothing(tmp_path: Path) -> None:
    """Kills at points of a step and between, hung workers, cut connections, notices true, late and false.

    Many more of them: `python benchmarks/chaos.py`.
    """
    kind = storm.KINDS[SEED % len(storm.KINDS)]
    base = storm.quiet(tmp_path, kind, STEPS)
    run, weather, deaths = storm.blow(tmp_path, kind, SEED, STEPS)
    assert storm.wrong_with(run, base, tmp_path) == []
    assert weather.struck.total() >= 20
    assert deaths.total() >= 3
    # no worker gathers sockets or threads, however many generations it has lived through
    assert max(held.files for held in weather.seen) < 150
    assert max(held.threads for held in weather.seen) < 80
    # nor does the launcher, whose nodes come and go
    early, late = weather.own[:8], weather.own[-8:]
    assert min(held.threads for held in late) <= min(held.threads for held in early) + 8
    assert min(held.files for held in late) <= min(held.files for held in early) + 40
