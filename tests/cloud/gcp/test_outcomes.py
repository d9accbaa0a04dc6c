"""What becomes of requests whose outcome is not known: nothing is forgotten, nothing in doubt for ever."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import pytest
from google.auth.exceptions import RefreshError, TransportError

from cloud.gcp import api as gcp_api
from cloud.gcp import sweep
from cloud.gcp.api import Api
from cloud.gcp.errors import ApiError
from cloud.gcp.provider import POWER_OFF_S
from cloud.provider import CloudError, CredentialsError, QuotaError, TellsNotices
from cloud.types import InstanceState, NoticeKind
from tests.cloud.gcp.fake_compute import ZONES, FakeCompute, Fault
from tests.cloud.gcp.test_provider import INSERT, TOKEN, provider_at

WAIT = "regionOperations.wait"


def on_record(folder: Path) -> list[str]:
    """The requests of which nobody knows the outcome yet."""
    return [path.name for path in folder.glob("requests/*.json")]


def test_an_operation_that_ended_in_trouble_is_over(compute: FakeCompute, tmp_path: Path) -> None:
    """The service's own error in it sends us to the next zone; asked again it would say the same for ever."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        for code in ("INTERNAL_ERROR", "SOMETHING_NEW"):
            compute.faults.append(Fault(INSERT, code, inside=True))
            (instance,) = (await provider.request(1, TOKEN if code[0] == "I" else TOKEN[::-1])).instances
            assert instance.pool.zone == ZONES[1]
            assert on_record(tmp_path) == []
            provider._pools._closed_until_s.clear()
        await provider.close()
        assert compute.live() == []

    asyncio.run(body())


def test_of_several_errors_the_one_that_no_pool_mends_is_told(compute: FakeCompute) -> None:
    """A quota beside a stock-out: asking elsewhere is of no use."""
    operation = compute._operation("bulkInsert", region="us-central1")
    errors = [{"code": code, "message": ""} for code in ("ZONE_RESOURCE_POOL_EXHAUSTED", "QUOTA_EXCEEDED")]
    shown = compute._shown
    compute._shown = lambda name: shown(name) | {"error": {"errors": errors}}  # type: ignore[method-assign]
    api = Api()
    where = {"project": api.project, "region": "us-central1", "operation": operation["name"]}
    with pytest.raises(ApiError) as caught:
        api.finish(api.read("RegionOperationsClient", "wait", where), 5.0)
    assert isinstance(caught.value.sorted, QuotaError)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault(WAIT, "authError", 401)],
        [Fault(WAIT, "forbidden", 403)],
        [Fault(INSERT, "backendError", 503, after=True), Fault(INSERT, "authError", 401)],
    ],
    ids=["expired while waiting", "not allowed to wait", "answer lost, then expired"],
)
def test_who_is_not_let_in_does_not_know_what_became_of_the_request(
    compute: FakeCompute, tmp_path: Path, faults: list[Fault]
) -> None:
    """It stays on record: its operation may still be at work where a sweep by label would see nothing yet."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        compute.faults += faults
        with pytest.raises(CredentialsError):
            await provider.request(2, TOKEN)
        assert len(on_record(tmp_path)) == 1
        assert len(compute.live()) == 2
        before = compute.calls.count(INSERT)
        await provider.close()
        assert compute.calls.count(INSERT) == before + 1
        assert (compute.live(), on_record(tmp_path)) == ([], [])

    asyncio.run(body())


def test_who_was_never_let_in_has_asked_for_nothing(compute: FakeCompute, tmp_path: Path) -> None:
    """Refused at once and the first time: there is nothing to find out about."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        compute.faults.append(Fault(INSERT, "authError", 401))
        with pytest.raises(CredentialsError):
            await provider.request(2, TOKEN)
        assert (on_record(tmp_path), compute.live()) == ([], [])

    asyncio.run(body())


def test_a_zone_out_of_reach_elsewhere_spoils_no_launch(compute: FakeCompute, tmp_path: Path) -> None:
    """One of another region is none of ours. In our own, what came is found as soon as it can be seen."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        compute.out_of_reach = {"europe-west4-a"}
        (first,) = (await provider.request(1, TOKEN)).instances
        compute.out_of_reach = {ZONES[0]}
        launch = compute.on_launch
        compute.on_launch = lambda shown: (launch(shown), compute.instances.pop(shown["name"]))[0]
        with pytest.raises(CloudError, match=f"cannot see {ZONES[0]}"):
            await provider.request(1, TOKEN[::-1])
        assert len(on_record(tmp_path)) == 1
        (late,) = set(compute.made) - {first.name}
        compute.instances[late] = compute.made[late]
        compute.out_of_reach = set()
        provider._looked_s = 0.0
        assert {one.name for one in await provider.describe()} == {first.name, late}
        await provider.close()
        assert (compute.live(), on_record(tmp_path)) == ([], [])

    asyncio.run(body())


def test_a_delete_that_comes_to_nothing_is_asked_again(
    compute: FakeCompute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its operation was accepted and failed, and the instance runs on: the end looks until it is gone."""
    monkeypatch.setattr(sweep, "_AGAIN_S", 0.1)

    async def body() -> None:
        provider = provider_at(tmp_path)
        await provider.request(1, TOKEN)
        compute.faults.append(Fault("instances.delete", "INTERNAL_ERROR", inside=True, times=2))
        await provider.close()
        assert (compute.live(), compute.calls.count("instances.delete")) == ([], 3)

    asyncio.run(body())


def test_only_our_own_loop_asks_again(compute: FakeCompute) -> None:
    """For reading, too: the library would go on for ten minutes, whatever the deadline of who waits."""
    pauses: list[float] = []
    api = Api(pause=pauses.append)
    compute.faults.append(Fault("instances.aggregatedList", "backendError", 503, times=2))
    assert sweep.instances_of(api, None) == []
    assert (len(pauses), compute.calls.count("instances.aggregatedList")) == (2, 3)


def test_who_accepts_and_never_answers_is_given_up(
    compute: FakeCompute, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking has a deadline of its own, and is tried again: the library would wait for ten minutes."""
    mute = threading.Event()
    monkeypatch.setattr(gcp_api, "_CALL_TIMEOUT_S", 0.1)
    compute.hold = lambda method: mute.wait(20) and None
    try:
        with pytest.raises(ApiError, match="backendError"):
            sweep.instances_of(Api(pause=lambda pause_s: None), None)
        assert not mute.is_set()
    finally:
        mute.set()


@pytest.mark.parametrize("error", [TransportError("no route"), RefreshError("busy", retryable=True)])
def test_a_token_service_that_is_out_of_reach_has_refused_nobody(
    compute: FakeCompute, error: Exception
) -> None:
    """It is asked again; only who is really turned away hears of credentials."""
    pauses: list[float] = []
    answers = [error, RefreshError("invalid_grant")]

    def send() -> None:
        raise answers.pop(0)

    with pytest.raises(ApiError, match="invalid_grant") as caught:
        Api(pause=pauses.append)._call("a call", send)
    assert isinstance(caught.value.sorted, CredentialsError)
    assert len(pauses) == 1


def test_a_first_pipeline_is_asked_for_whole_when_the_last_node_is_going(
    compute: FakeCompute, tmp_path: Path
) -> None:
    """Who is on the way out is no part of a pipeline: fewer than the smallest would be of no use."""

    async def body() -> None:
        provider = provider_at(tmp_path, smallest=2)
        first = (await provider.request(2, TOKEN)).instances
        compute.stopping_s = 30.0
        await provider.terminate([one.name for one in first])
        assert {one.state for one in await provider.describe()} == {InstanceState.TERMINATING}
        compute.capacity = dict.fromkeys(ZONES, 1)
        assert (await provider.request(2, TOKEN[::-1])).instances == ()
        compute.instances.clear()

    asyncio.run(body())


def test_who_is_told_to_power_off_works_on_until_its_power_goes(compute: FakeCompute, tmp_path: Path) -> None:
    """The list calls a preempted instance STOPPING for 30 s: a notice, not an end. Who we end is going."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        assert isinstance(provider, TellsNotices)
        taken, kept, ended = (await provider.request(3, TOKEN)).instances
        compute.stopping_s = 60.0
        await provider.terminate([ended.name])
        compute.instances[taken.name]["status"] = "STOPPING"

        async def states() -> dict[str, InstanceState]:
            provider._looked_s = 0.0
            return {one.name: one.state for one in await provider.describe()}

        going = {kept.name: InstanceState.RUNNING, ended.name: InstanceState.TERMINATING}
        assert await states() == {taken.name: InstanceState.RUNNING, **going}
        (notice,) = provider.notices().items()
        assert notice[0] == taken.name
        assert notice[1].kind is NoticeKind.INTERRUPTION
        assert notice[1].deadline_s == pytest.approx(time.time() + POWER_OFF_S, abs=5.0)
        steady = provider._steady
        provider._steady = lambda: steady() + POWER_OFF_S
        assert await states() == {taken.name: InstanceState.TERMINATING, **going}
        assert provider.notices() == {}
        compute.preempt(taken.name)
        assert (await states())[taken.name] is InstanceState.TERMINATED
        compute.instances.clear()

    asyncio.run(body())
