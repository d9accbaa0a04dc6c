"""What is sent to Compute Engine, when it is on record, and what becomes of its answers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cloud.gcp.api import ENDPOINT, Api
from cloud.gcp.errors import Verdict, verdict_of
from cloud.gcp.launch_record import LaunchRecord
from cloud.gcp.market import prospects
from cloud.gcp.requests import delete_request, request_id
from cloud.provider import CloudError, CredentialsError
from cloud.types import InstanceState
from parcae_cli.catalogue import load_fleet, load_measured_costs, load_model
from runtime.control.job.job import LaunchRequest
from runtime.control.job.journal import Journal
from runtime.control.providers.gcp import plan, setup
from tests.cloud.gcp.fake_compute import MACHINE_TYPE, PROJECT, ZONES, FakeCompute
from tests.cloud.gcp.test_provider import INSERT, TOKEN, provider_at, settings
from tests.control.test_objects import FEDERATED


def test_what_is_sent_is_what_the_dry_run_showed(
    compute: FakeCompute, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same arguments, but for ids and keys that are made at launch."""
    fleet = {**load_fleet("gcp"), "machine_types": [MACHINE_TYPE, "g2-standard-12"], "notice_s": 120}
    fields: dict[str, Any] = {"cloud": "gcp", "nodes": 32, "fleet": fleet}
    request = LaunchRequest("job", "gpt3-6b", tmp_path, cost_table=load_measured_costs(), **fields)
    shown = [one["arguments"] for one in plan(request, load_model("gpt3-6b"))["requests"]]
    sent: list[dict[str, Any]] = []
    change = Api.change

    def note(self: Api, client: str, method: str, arguments: dict[str, Any]) -> Any:
        sent.append(arguments)
        return change(self, client, method, arguments)

    monkeypatch.setattr(Api, "change", note)
    compute.capacity = dict.fromkeys(ZONES, 0)
    journal = Journal(tmp_path)
    made = setup(request, load_model("gpt3-6b"), journal)
    asyncio.run(made.provider.request(32, TOKEN))
    record = LaunchRecord.read(journal.job_folder("job") / "gcp")
    journal.close()
    places = {record.launch: "LAUNCH", record.launch[:8]: "LAUNCH", TOKEN: "TOKEN", TOKEN[:8]: "TOKEN"}
    for key in (record.client_key, record.host_key):
        places |= {key.private.strip(): "(made at launch)", key.public.strip(): "(made at launch)"}
    ids = {request_id(TOKEN, number): request_id("TOKEN", number) for number in range(len(shown))}
    assert [_renamed(one, {**places, **ids}) for one in sent] == shown


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The value with other names in all its strings."""
    if isinstance(value, dict):
        return {key: _renamed(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    if isinstance(value, str):
        for old, new in names.items():
            value = value.replace(old, new)
    return value


def test_an_operations_name_is_on_the_disk_before_it_is_waited_for(
    compute: FakeCompute, tmp_path: Path
) -> None:
    """Whoever goes on with the launch can look it up; the request itself is there before it is sent.

    Operations of a zone are waited for in the zone, at the endpoint that we were told of.
    """
    seen: dict[str, list[dict[str, Any]]] = {}

    def look(method: str) -> None:
        seen[method] = [json.loads(path.read_text()) for path in (tmp_path / "requests").glob("*.json")]

    async def body() -> None:
        provider = provider_at(tmp_path)
        compute.hold = look
        await provider.request(1, TOKEN)
        (before,), (waiting,) = seen[INSERT], seen["regionOperations.wait"]
        assert before == {"request": waiting["request"]}
        assert waiting["request"]["request_id"] == request_id(TOKEN, 0)
        assert waiting["operation"] in compute.operations
        (name,) = compute.live()
        api = Api()
        ended = api.finish(
            api.change("InstancesClient", "delete", delete_request(PROJECT, ZONES[0], name)), 5.0
        )
        assert (ended.status.name, compute.calls[-1]) == ("DONE", "zoneOperations.wait")
        await provider.close()

    asyncio.run(body())


def test_whom_everybody_has_forgotten_compute_engine_deletes(compute: FakeCompute, tmp_path: Path) -> None:
    """After its longest time, whoever lives; to its job that is an end like any other."""

    async def body() -> None:
        provider = provider_at(tmp_path, times={"longest_run_s": 3600, "close_s": 5, "operation_s": 5})
        await provider.request(2, TOKEN)
        compute.clock = lambda: time.time() + 3599
        assert len(compute.live()) == 2
        compute.clock = lambda: time.time() + 3601
        assert compute.live() == []
        assert {one.state for one in await provider.describe()} == {InstanceState.TERMINATED}

    asyncio.run(body())


@pytest.mark.parametrize(
    ("code", "status", "verdict"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED", 400, Verdict.NEXT_POOL),
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", 400, Verdict.NEXT_POOL),
        ("SOMETHING_NEW_WITH_DETAILS", 400, Verdict.NEXT_POOL),
        ("QUOTA_EXCEEDED", 403, Verdict.QUOTA),
        ("quotaExceeded", 403, Verdict.QUOTA),
        ("rateLimitExceeded", 403, Verdict.WAIT),
        ("forbidden", 403, Verdict.CREDENTIALS),
        ("unheardOf", 403, Verdict.CREDENTIALS),
        ("unheardOf", 429, Verdict.WAIT),
        ("unheardOf", 503, Verdict.WAIT),
        ("notFound", 404, Verdict.NOT_FOUND),
        ("invalid", 400, Verdict.FATAL),
    ],
)
def test_errors_are_sorted_by_what_to_do(code: str, status: int, verdict: Verdict) -> None:
    """By the code; where that is unknown, by the HTTP status."""
    assert verdict_of(code, status) is verdict


def test_an_unknown_error_goes_to_the_next_pool_and_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """There may be capacity elsewhere, and somebody should teach us the code."""
    assert verdict_of("NEVER_SEEN", 400) is Verdict.NEXT_POOL
    assert "NEVER_SEEN" in caplog.text


@pytest.mark.parametrize("key", ["longest_run_s", "anchor_longest_s"])
def test_a_longest_time_is_what_compute_engine_takes(key: str) -> None:
    """30 seconds to 120 days; the message names the key."""
    for wrong in (29, 10368001):
        with pytest.raises(ValueError, match=rf"times\.{key}: Compute Engine takes 30 to 10368000 s"):
            settings(times={key: wrong})


def test_credentials_that_cannot_be_used_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file, a file that is none, and a federated identity whose own token is not there: told, with why."""
    path = tmp_path / "credentials.json"
    monkeypatch.delenv(ENDPOINT, raising=False)
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    for text, why in ((None, "was not found"), ("{}", "credentials.json")):
        if text is not None:
            path.write_text(text)
        with pytest.raises(CredentialsError, match=rf"^gcp: no credentials: .*{why}.* Run `gcloud auth"):
            Api()
    path.write_text(json.dumps({**FEDERATED, "credential_source": {"file": str(tmp_path / "none")}}))
    with pytest.raises(CloudError, match="no project"):
        Api()
    with pytest.raises(CredentialsError, match=rf"{tmp_path}/none.* was not found.*Check `gcloud auth"):
        prospects(Api("project-1"), settings(), 1)
