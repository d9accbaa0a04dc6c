"""The capacity record in the journal, and what a later job takes from it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cloud.types import PoolTally
from runtime.control.job.capacity import CapacityWatch, Outlooking, known_rates
from runtime.control.job.capacity_table import KEPT_DAYS
from runtime.control.job.journal import Journal
from runtime.planning.hazard import Hazard
from runtime.planning.outlook import USUAL, PoolMinute


class Market:
    """A provider that only tells of its one pool."""

    name = "aws"

    def __init__(self) -> None:
        self.tally = PoolTally("g5/a", 4, 0, 4, 4, 0, 1.0, 3.0)

    def tallies(self) -> list[PoolTally]:
        """As it was set."""
        return [self.tally]

    async def ask_market(self) -> None:
        """Nothing is new."""


def test_a_later_job_starts_with_the_rates_that_an_earlier_one_saw(tmp_path: Path) -> None:
    """A row a minute with what has changed; the start of the fleet is no gain; other pools teach nothing."""
    journal, market = Journal(tmp_path), Market()
    provider: Any = market
    watch = CapacityWatch(journal, "job", "aws", provider, 4)
    forecaster = watch.bend(Hazard())
    assert isinstance(forecaster, Outlooking)
    now_s = time.time() - 7200
    watch.write(now_s)
    for minute in range(1, 61):
        lost = 1 if minute >= 30 else 0
        market.tally = PoolTally("g5/a", 4, lost, 4 + lost, 4 + lost, 0, 1.0, 3.0)
        watch.write(now_s + 60 * minute)
    rows = journal.capacity("aws", ["g5/a"], 0)
    assert (len(rows), sum(row.lost for row in rows), sum(row.came for row in rows)) == (61, 1, 1)
    assert forecaster.outlook == USUAL
    assert watch.now["price_change"] == 0.0
    for minute in range(61, 81):
        market.tally = PoolTally("g5/a", 3, 1, 5, 5 + minute, minute, 1.2, 3.0)
        watch.write(now_s + 60 * minute)
    assert forecaster.outlook.gains <= 0.5
    assert watch.now["launches_refused"] > 0
    journal.close()
    journal = Journal(tmp_path)  # another process, later
    rates = known_rates(journal, "aws", ["g5/a", "g5/b"], None)
    assert rates is not None
    assert 0.1 < rates.losses_per_instance_hour < 0.3
    assert known_rates(journal, "aws", ["g5/b"], None) is None
    assert known_rates(journal, "gcp", ["g5/a"], None) is None
    journal.close()


def test_the_record_is_kept_for_a_limited_time(tmp_path: Path) -> None:
    """What is older than thirty days goes; a minute that is written twice adds up."""
    journal, now_s = Journal(tmp_path), 1e9
    minute = int(now_s // 60)
    old = minute - KEPT_DAYS * 24 * 60 - 1
    journal.put_capacity("job", "aws", [PoolMinute(old, "g5/a", held=1), PoolMinute(minute, "g5/a", lost=1)])
    journal.put_capacity("job", "aws", [PoolMinute(minute, "g5/a", lost=2)])
    journal.prune_capacity(now_s)
    assert [(row.minute, row.lost) for row in journal.capacity("aws", ["g5/a"], 0)] == [(minute, 3)]
    journal.close()
