"""A job's limits, on any cloud: what is counted against them, and when they are reached."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.types import Instance, InstanceState, Pool
from runtime.control.job.bill import Bill
from runtime.control.job.job import LaunchRequest
from runtime.control.job.journal import Journal
from runtime.control.job.recorder import Recorder

POOL = Pool("zone", "machine", 1, 0.3, 0.9)


def instance(name: str, state: InstanceState = InstanceState.RUNNING, age_s: float = 0.0) -> Instance:
    """One at 0.30 USD an hour."""
    return Instance(name, name, "job", "token", POOL, state, time.time() - age_s)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty one."""
    made = Journal(tmp_path)
    yield made
    made.close()


def limited(journal: Journal, **limits: float) -> tuple[Bill, Recorder]:
    """A job's bill, and who looks at it."""
    journal.job_folder("job").mkdir(parents=True, exist_ok=True)
    bill = Bill(1.0)
    recorder = Recorder(LaunchRequest("job", "gpt-tiny", journal.home, **limits), journal, bill)
    recorder._metrics.close()
    return bill, recorder


def test_a_price_per_hour_is_that_of_what_stays(journal: Journal) -> None:
    """An instance that was warned and its replacement are side by side for a minute: no reason to end."""
    bill, recorder = limited(journal, max_usd_per_hour=0.7)
    for name in ("a", "b"):
        bill.update(instance(name), time.time())
    assert recorder.budget_spent() == ""
    bill.update(instance("a", InstanceState.NOTICED), time.time())
    bill.update(instance("c"), time.time())
    assert bill.per_hour() == pytest.approx(0.9)
    assert recorder.budget_spent() == ""
    bill.update(instance("a", InstanceState.TERMINATING), time.time())
    assert recorder.budget_spent() == ""
    bill.update(instance("d"), time.time())
    assert recorder.budget_spent() == ("the fleet costs 0.90 USD an hour, --max-price-per-hour is 0.7")


def test_a_budget_and_hours_end_early_by_what_the_end_takes(journal: Journal) -> None:
    """Giving back takes seconds, and keeping the last state some more; both are paid for."""
    bill, recorder = limited(journal, budget_usd=0.3)
    bill.update(instance("a", age_s=3590.0), time.time())
    assert recorder.budget_spent() == ""
    assert "0.30 of 0.30 USD" in recorder.budget_spent(drain_s=20.0)
    bill, recorder = limited(journal, max_hours=20 / 3600)
    bill.update(instance("a"), time.time())
    assert recorder.budget_spent() == ""
    assert "--max-hours" in recorder.budget_spent(drain_s=20.0)


def test_a_price_that_rises_is_paid_from_then_on(journal: Journal) -> None:
    """What was paid before stays; budget and price per hour are held against the price of now."""
    bill, recorder = limited(journal, budget_usd=1.0, max_usd_per_hour=0.7)
    now_s = time.time()
    bill.update(replace(instance("a"), launched_s=now_s - 3600), now_s)
    assert bill.spent(now_s)[0] == pytest.approx(0.3)
    bill.reprice({"machine/zone": 0.6, "machine/elsewhere": 9.0}, now_s)
    assert bill.spent(now_s) == (pytest.approx(0.3), pytest.approx(0.9))
    assert bill.spent(now_s + 3600)[0] == pytest.approx(0.9)
    assert bill.per_hour() == pytest.approx(0.6)
    bill.reprice({"machine/zone": 0.2}, now_s + 3600)
    assert bill.spent(now_s + 7200) == (pytest.approx(1.1), pytest.approx(2.7))
    bill.reprice({"machine/zone": 0.8}, now_s)
    bill.update(replace(instance("b"), launched_s=now_s), now_s)  # rented at the price of now
    assert "--max-price-per-hour" in recorder.budget_spent()
    bill.update(replace(instance("a", InstanceState.TERMINATED), launched_s=now_s - 3600), now_s)
    ended_usd = bill.spent(now_s)[0]
    bill.reprice({"machine/zone": 5.0, "other/zone": 0.0}, now_s)
    assert bill.spent(now_s)[0] == pytest.approx(ended_usd), "who has ended costs no more"
    bill.reprice({"machine/zone": 0.0}, now_s)
    assert bill.per_hour() == pytest.approx(5.0), "a price that nobody knows changes nothing"
