"""`parcae trace record` writes what was held, by one job or in a cloud's pools, as a trace that replays."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.control.job.journal import Journal
from runtime.planning.outlook import PoolMinute
from tests.cli.conftest import Done

Run = Callable[..., Done]


@pytest.fixture
def recorded(journal: Journal) -> None:
    """Two jobs in two pools of aws, an hour ago and now."""
    now = int(time.time() // 60)
    for job, minute, held in (("old", now - 60, 5), ("one", now - 1, 4), ("one", now, 3)):
        rows = [PoolMinute(minute, "g5/a", held, 8), PoolMinute(minute, "g5/b", 1, 8)]
        journal.put_capacity(job, "aws", rows)


def test_a_clouds_record_is_written_and_read_again(parcae: Run, recorded: None) -> None:
    """All pools, or the named one, of the last hours; `trace info` tells its rates."""
    assert parcae("trace", "record", "--cloud", "aws", "all.csv").code == 0
    found = json.loads(parcae("trace", "info", "all.csv", "--json").out)
    assert (found["max_available"], found["preempted"], found["hours"]) == (6, 2, 3 / 60)
    assert found["losses_per_instance_hour"] == pytest.approx(2 / (15 / 60))
    assert "an instance hour, one in" in parcae("trace", "info", "all.csv").out
    one = parcae("trace", "record", "--cloud", "aws", "--pool", "g5/a", "--hours", 0.5, "-")
    assert one.code == 0 and one.out.count("add") == 4


def test_each_clouds_record_is_its_own(parcae: Run, recorded: None, journal: Journal) -> None:
    """What was seen of gcp's pools is written for gcp, and is no part of aws's."""
    now = int(time.time() // 60)
    rows = [PoolMinute(now, "g2-standard-8/us-central1-a", 7, 8), PoolMinute(now - 1, "g2/b", 2, 8)]
    journal.put_capacity("third", "gcp", rows)
    done = parcae("trace", "record", "--cloud", "gcp", "-")
    assert done.code == 0 and done.out.count("add") == 9
    assert parcae("trace", "record", "--cloud", "aws", "aws.csv").code == 0
    assert json.loads(parcae("trace", "info", "aws.csv", "--json").out)["max_available"] == 6


def test_what_cannot_be_recorded_is_refused(parcae: Run, recorded: None) -> None:
    """Each with exit code 2 and what to do instead; a file is never overwritten unasked."""
    Path("there.csv").touch()
    for words, said in (
        (["--cloud", "aws", "there.csv"], "--force"),
        (["--cloud", "aws", "."], "is a folder"),
        (["--cloud", "aws", "no/such.csv"], "there is no folder"),
        (["--cloud", "local", "x.csv"], "aws and gcp"),
        (["--cloud", "gcp", "x.csv"], "no job has recorded"),
        (["--cloud", "aws", "--pool", "p5/x", "x.csv"], "There are: g5/a, g5/b"),
        (["nobody", "x.csv"], "no job named"),
        (["x.csv"], "give JOB and OUT, or --cloud and OUT"),
        (["mine", "x.csv", "--hours", "3"], "--hours and --pool go with --cloud"),
    ):
        done = parcae("trace", "record", *words)
        assert done.code == 2 and said in done.err, words
