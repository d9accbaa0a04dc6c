"""The capacity record in the journal, and what a later job takes from it."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from cloud.types import PoolTally
from runtime.control.job.capacity import WINDOW_H, CapacityWatch, Outlooking, known_rates
from runtime.control.job.capacity_table import KEPT_DAYS
from runtime.control.job.journal import Journal
from runtime.planning.hazard import Hazard
from runtime.planning.outlook import USUAL, PoolMinute, outlook


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


def test_a_job_reads_the_week_once_and_then_the_last_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outlook is that of the whole record, other jobs' late rows included; what is a week old goes."""
    journal, other, market = Journal(tmp_path), Journal(tmp_path), Market()
    chance = random.Random(5)
    week = int(WINDOW_H * 60)
    now = int(time.time() // 60)
    keys = ["g5/a", "g5/b"]

    def row(minute: int) -> PoolMinute:
        risen = chance.choice([1.0, 1.0, 1.3])
        return PoolMinute(
            minute, chance.choice(keys), 4, 4, chance.randint(0, 1), 1, 2, chance.randint(0, 2), risen, 3.0,
            chance.choice([None, 3.0, 9.0]),
        )  # fmt: skip

    early = [row(now - week + chance.randint(-5, week - 1)) for _ in range(300)]
    other.put_capacity("before", "aws", list({(one.pool, one.minute): one for one in early}.values()))
    asked: list[int] = []
    newest = 0
    read = journal.capacity

    def capacity(cloud: str, pools: Any, since_minute: int) -> list[PoolMinute]:
        found = read(cloud, pools, since_minute)
        asked.append(len(found))
        return found

    monkeypatch.setattr(journal, "capacity", capacity)
    provider: Any = market
    prices: list[Any] = []
    watch = CapacityWatch(journal, "job", "aws", provider, 4, prices.append)
    forecaster = watch.bend(Hazard())
    assert isinstance(forecaster, Outlooking)
    market.tallies = lambda: tallies  # type: ignore[method-assign]
    for number, minute in enumerate([*range(now, now + 40), now + 12, *range(now + 41, now + 60)]):
        tallies = [PoolTally(key, 4, number, 4, number, number, 1.0 + number / 90, 3.0, 5.0) for key in keys]
        late = minute - chance.choice([0, 0, 1, 2])
        other.put_capacity("beside", "aws", [row(late)])
        watch.write(60.0 * minute + 30)
        newest = max(newest, minute)  # what was dropped does not come back
        whole = other.capacity("aws", keys, newest - week)
        assert forecaster.outlook == outlook(whole, minute)
        assert watch._window is not None
        kept = watch._window.read(minute)
        assert sorted(kept, key=repr) == sorted(whole, key=repr)
    assert asked[0] > 200
    assert max(asked[1:]) < 150, "even after the clock was set back"
    assert sorted(asked)[len(asked) // 2] < 20
    other.close()
    journal.close()
