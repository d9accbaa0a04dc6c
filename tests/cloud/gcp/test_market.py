"""What Compute Engine says of its pools, and what a plan and a job make of it."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from cloud.gcp.api import Api
from cloud.gcp.market import prospects
from cloud.provider import CloudError
from parcae_cli.catalogue import load_fleet, load_model
from runtime.control.job.job import LaunchRequest
from runtime.control.job.journal import Journal
from runtime.control.providers.gcp import prior_of, setup
from runtime.control.providers.rented import BootedNode
from tests.cloud.gcp.fake_compute import MACHINE_TYPE, ZONES, FakeCompute, Fault
from tests.cloud.gcp.test_provider import TOKEN, planned, provider_at, settings


def test_pools_come_with_their_prices_the_best_first(compute: FakeCompute) -> None:
    """Prices, preemption rates and obtainability are the advice service's; without it the pools remain."""
    found = prospects(Api(), settings(), 4)
    assert [one.pool.zone for one in found] == list(ZONES)
    assert [one.pool.spot_usd_per_hour for one in found] == pytest.approx([0.30, 0.31])
    assert {(one.preempted_per_day, one.obtainability) for one in found} == {(0.05, 0.7)}
    prior = prior_of(found)
    assert prior is not None
    assert prior.losses_per_instance_hour == pytest.approx(-math.log(0.95) / 24)
    compute.faults.append(Fault("advice.capacityHistory", "invalid", times=9))
    compute.faults.append(Fault("advice.capacity", "invalid"))
    found = prospects(Api(), settings(), 4)
    assert [one.pool.spot_usd_per_hour for one in found] == [0.85, 0.85]
    assert prior_of(found) is None
    with pytest.raises(CloudError, match="none of n1-unknown is offered in us-central1"):
        prospects(Api(), settings(machine_types=["n1-unknown"]), 4)


def test_preemption_rates_choose_the_zone_and_lower_what_is_expected(
    compute: FakeCompute, tmp_path: Path
) -> None:
    """A zone that loses most of its machines in a day is not cheap; the rates are the forecaster's prior."""
    calm = planned(tmp_path, [MACHINE_TYPE])
    assert [row["zone"] for row in calm["pools"]] == list(ZONES)
    compute.preempted_per_day[ZONES[0]] = 0.5
    half = planned(tmp_path, [MACHINE_TYPE])
    assert [row["zone"] for row in half["pools"]] == list(reversed(ZONES))
    compute.preempted_per_day = dict.fromkeys(ZONES, 0.999)
    stormy = planned(tmp_path, [MACHINE_TYPE])
    expected = [made["expected"]["liveput"] for made in (calm, half, stormy)]
    assert expected[0] > expected[1] > expected[2] > 0


def test_a_job_begins_with_what_the_market_says(compute: FakeCompute, tmp_path: Path) -> None:
    """Its prior are the rates, its events name pools and past preemptions; nodes know a notice's length.

    Who may rent and not list operations hears of pools alone.
    """
    provider = provider_at(tmp_path / "before")
    asyncio.run(provider.request(2, TOKEN))
    for name in compute.live():
        compute.preempt(name)
    journal = Journal(tmp_path)
    fleet = {**load_fleet("gcp"), "machine_types": [MACHINE_TYPE], "notice_s": 120, "device": "model"}
    request = LaunchRequest("job", "gpt-tiny", tmp_path, cloud="gcp", nodes=2, fleet=fleet)
    made = setup(request, load_model("gpt-tiny"), journal)
    compute.faults.append(Fault("zoneOperations.list", "forbidden", 403))
    assert setup(request, load_model("gpt-tiny"), journal).market == made.market[:2]
    journal.close()
    assert made.prior is not None
    assert made.prior.losses_per_instance_hour == pytest.approx(-math.log(0.95) / 24)
    assert isinstance(made.agent_start, BootedNode)
    assert made.agent_start.environment["PARCAE_NOTICE_S"] == "120"
    assert made.market == (
        f"{MACHINE_TYPE} in {ZONES[0]}: 0.3 USD an hour, 5.0% preempted a day, obtainability 0.7",
        f"{MACHINE_TYPE} in {ZONES[1]}: 0.31 USD an hour, 5.0% preempted a day, obtainability 0.7",
        "preemptions of this project that the API remembers there: 2",
    )
