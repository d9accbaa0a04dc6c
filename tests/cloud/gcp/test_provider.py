"""The GCP provider against a stand-in that follows the published description of Compute Engine."""

from __future__ import annotations

import asyncio
import time
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloud.gcp.api import ATTEMPTS, Api
from cloud.gcp.inserts import settle
from cloud.gcp.launch_record import LaunchRecord
from cloud.gcp.market import preemptions, prospects
from cloud.gcp.provider import GcpProvider
from cloud.gcp.requests import Owner, bulk_insert_request, request_id
from cloud.gcp.settings import GcpSettings
from cloud.gcp.sweep import delete_until_gone
from cloud.provider import CloudError, CredentialsError, MaybeStillRunningError, QuotaError
from cloud.types import InstanceState, Pool
from parcae_cli.catalogue import load_fleet, load_measured_costs, load_model
from parcae_cli.render.job import print_plan
from runtime.control.job.job import LaunchRequest
from runtime.control.job.journal import Journal
from runtime.control.providers.gcp import foreign_instances, plan, setup, sweep
from runtime.planning.errors import InputError
from tests.cloud.gcp.fake_compute import MACHINE_TYPE, PROJECT, REGION, ZONES, FakeCompute, Fault

TOKEN = "0123456789abcdef0123456789abcdef"
INSERT = "regionInstances.bulkInsert"


def settings(**changes: Any) -> GcpSettings:
    """The shipped ones for one machine type, with short times."""
    times = {"cool_down_s": 5, "describe_s": 0.1, "close_s": 5, "operation_s": 5}
    return GcpSettings.parse(
        {**load_fleet("gcp"), "machine_types": [MACHINE_TYPE], "times": times, **changes}
    )


def provider_at(folder: Path, smallest: int = 1, **changes: Any) -> GcpProvider:
    """A provider with a launch record in the folder, whose calls never sleep."""
    api, chosen = Api(pause=lambda pause_s: None), settings(**changes)
    pools = [prospect.pool for prospect in prospects(api, chosen, 4)]
    record = LaunchRecord.at(folder, "My.Job", api.project, REGION)
    return GcpProvider(api, chosen, record, pools, smallest)


def test_a_life_from_request_to_end(compute: FakeCompute, tmp_path: Path) -> None:
    """Labelled, spot, deleted when preempted; the API's list decides what lives; nothing is left."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        await provider.start()
        reply = await provider.request(3, TOKEN)
        assert (len(reply.instances), reply.refused) == (3, 0)
        assert await provider.request(3, TOKEN) == reply
        raw = next(iter(compute.instances.values()))
        assert raw["labels"]["parcae-job"] == "my-job"
        assert raw["labels"]["parcae-token"] == TOKEN
        assert raw["scheduling"]["provisioningModel"] == "SPOT"
        assert raw["scheduling"]["instanceTerminationAction"] == "DELETE"
        assert raw["scheduling"]["maxRunDuration"] == {"seconds": "86400"}
        first = reply.instances[0]
        target = provider.ssh_target(first)
        assert (target.host, target.port, target.username) == ("127.0.0.1", 22, "parcae")
        compute.preempt(first.name)
        provider._looked_s = 0.0
        states = {one.name: one.state for one in await provider.describe()}
        assert states[first.name] is InstanceState.TERMINATED
        assert [one.instance for one in preemptions(Api(), list(ZONES))] == [first.name]
        await provider.terminate([reply.instances[1].name, "unknown"])
        assert len(compute.live()) == 1
        await provider.close()
        assert compute.live() == []
        assert {one.state for one in await provider.describe()} == {InstanceState.TERMINATED}
        assert not list((tmp_path / "requests").glob("*.json"))

    asyncio.run(body())


def test_a_stock_out_in_the_operation_sends_us_to_the_next_zone(compute: FakeCompute, tmp_path: Path) -> None:
    """With details or without; when all zones are out the reply says so, and they get some rest."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        compute.faults.append(Fault(INSERT, "ZONE_RESOURCE_POOL_EXHAUSTED", inside=True))
        reply = await provider.request(2, TOKEN)
        assert {one.pool.zone for one in reply.instances} == {ZONES[1]}
        compute.capacity = dict.fromkeys(ZONES, 0)
        reply = await provider.request(1, TOKEN[::-1])
        assert (reply.instances, reply.refused) == ((), 1)
        assert "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS" in reply.why
        calls = len(compute.calls)
        assert (await provider.request(1, "f" * 32)).refused == 1
        assert len(compute.calls) == calls
        await provider.close()

    asyncio.run(body())


def test_fewer_than_the_smallest_pipeline_are_not_taken(compute: FakeCompute, tmp_path: Path) -> None:
    """The first request brings enough to train, or nothing that costs money."""

    async def body() -> None:
        provider = provider_at(tmp_path, smallest=2)
        compute.capacity = dict.fromkeys(ZONES, 1)
        assert (await provider.request(3, TOKEN)).refused == 3
        assert compute.live() == []

    asyncio.run(body())


@pytest.mark.parametrize(
    ("fault", "error", "said"),
    [
        (Fault(INSERT, "quotaExceeded", 403, "Quota 'NVIDIA_L4' is full"), QuotaError, "NVIDIA_L4"),
        (Fault(INSERT, "QUOTA_EXCEEDED", message="Quota 'L4'", inside=True), QuotaError, "iam-admin/quotas"),
        (Fault(INSERT, "forbidden", 403), CredentialsError, "gcloud auth"),
        (Fault(INSERT, "authError", 401), CredentialsError, "gcloud auth"),
        (Fault(INSERT, "invalid", 400, "Invalid value for disks"), CloudError, "Invalid value for disks"),
    ],
)
def test_errors_say_what_to_do(
    compute: FakeCompute, tmp_path: Path, fault: Fault, error: type[Exception], said: str
) -> None:
    """A quota is named wherever it comes from; the call is sent once, not again and again."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        compute.faults.append(fault)
        with pytest.raises(error, match=said):
            await provider.request(1, TOKEN)
        assert compute.calls.count(INSERT) == 1
        assert compute.live() == []

    asyncio.run(body())


@pytest.mark.parametrize("after", [False, True])
def test_an_insert_whose_answer_was_lost_leaks_nothing(
    compute: FakeCompute, tmp_path: Path, after: bool
) -> None:
    """Nor was any answer to its repetitions heard. The end sends it once more: nothing lives afterwards."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        compute.faults.append(Fault(INSERT, "backendError", 503, times=ATTEMPTS, after=after))
        with pytest.raises(CloudError, match="backendError"):
            await provider.request(2, TOKEN)
        assert len(compute.live()) == (2 if after else 0)
        await provider.close()
        assert compute.live() == []

    asyncio.run(body())


def test_a_killed_launcher_is_swept_up_after(compute: FakeCompute, tmp_path: Path) -> None:
    """From the record on the disk alone, whether it died before, in or after the call, and whatever the
    operation came to; twice is no error.
    """
    for number, moment in enumerate(("before", "sent", "accepted", "failed")):
        folder = tmp_path / moment
        record = LaunchRecord.at(folder, "job", PROJECT, REGION)
        api = Api()
        request = bulk_insert_request(
            record.owner, settings(), PROJECT, REGION, [Pool(ZONES[0], MACHINE_TYPE, 1, 0.0, 0.0)], 2, 1,
            f"{number}" * 32, 0, "ssh-ed25519 AAAA", "true",
        )  # fmt: skip
        record.sending(request)
        if moment == "failed":
            compute.faults.append(Fault(INSERT, "INTERNAL_ERROR", inside=True))
        if moment != "before":
            operation = api.change("RegionInstancesClient", "bulk_insert", request)
            if moment == "accepted":
                record.accepted(request, operation.name)
        again = LaunchRecord.read(folder)
        assert again == record
        for _ in range(2):
            settle(api, again, 5.0)
            delete_until_gone(api, again.owner, 5.0)
            assert compute.live() == []


def test_who_does_not_go_away_is_named(compute: FakeCompute, tmp_path: Path) -> None:
    """As long as the API shows an instance, nobody says that it is gone."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        (instance,) = (await provider.request(1, TOKEN)).instances
        compute.faults.append(Fault("instances.delete", "backendError", 503, times=99))
        provider._settings = settings(times={"close_s": 0.1, "operation_s": 5})
        with pytest.raises(MaybeStillRunningError, match=instance.name):
            await provider.close()

    asyncio.run(body())


def test_a_zone_that_the_api_cannot_reach_is_not_an_empty_one(compute: FakeCompute, tmp_path: Path) -> None:
    """Its instances are as they were before, and the end of the launch stays in doubt until it is seen."""

    async def body() -> None:
        provider = provider_at(tmp_path)
        (instance,) = (await provider.request(1, TOKEN)).instances
        hidden = compute.instances.pop(instance.name)
        compute.out_of_reach = {ZONES[0], "europe-west4-a"}
        provider._looked_s = 0.0
        assert [one.state for one in await provider.describe()] == [InstanceState.RUNNING]
        provider._settings = settings(times={"close_s": 0.1, "operation_s": 5})
        with pytest.raises(MaybeStillRunningError, match=f"cannot see {ZONES[0]};"):
            await provider.close()
        with pytest.raises(CloudError, match="cannot see"):
            foreign_instances([tmp_path])
        compute.instances[instance.name] = hidden
        compute.out_of_reach = {"europe-west4-a"}
        assert sweep(tmp_path) == [instance.name]

    asyncio.run(body())


def test_the_stand_in_refuses_what_the_api_would_refuse(tmp_path: Path) -> None:
    """Unknown paths, parameters, fields, enum values, types and names; nothing of it is carried out."""
    fake = FakeCompute()
    root = f"/compute/v1/projects/p/zones/{ZONES[0]}"
    bodies = [
        b'{"name": "x", "spot": true}',
        b'{"name": "x", "scheduling": {"provisioningModel": "spot"}}',
        b'{"name": "x", "scheduling": {"automaticRestart": "false"}}',
        b'{"name": "Bad_Name"}',
    ]
    assert [fake.handle("POST", f"{root}/instances", body)[0] for body in bodies] == [400] * 4
    assert fake.handle("GET", f"{root}/instances?filtr=x", b"")[0] == 400
    assert fake.handle("GET", f"{root}/spotInstances", b"")[0] == 404
    assert fake.calls == []


def test_settings_are_checked_and_requests_follow_them() -> None:
    """Wrong keys are named. Two machine types go as ranked selections; 120 s of notice are asked for."""
    with pytest.raises(ValueError, match="zone: no such key"):
        GcpSettings.parse({"machine_types": ["a"], "zone": "x"})
    with pytest.raises(ValueError, match="notice_s"):
        GcpSettings.parse({"machine_types": ["a"], "notice_s": 60})
    pools = [Pool(ZONES[0], name, 1, 0.0, 0.0) for name in ("g2-standard-8", "a2-highgpu-1g")]
    request = bulk_insert_request(
        Owner("j", "l" * 20), settings(notice_s=120, accelerator="nvidia-tesla-t4"), "p", REGION, pools, 2, 1,
        TOKEN, 3, "key", "script",
    )  # fmt: skip
    resource = request["bulk_insert_instance_resource_resource"]
    assert request["request_id"] == request_id(TOKEN, 3) != request_id(TOKEN, 2)
    assert list(resource["instance_flexibility_policy"]["instance_selections"]) == ["rank-0", "rank-1"]
    properties = resource["instance_properties"]
    (disk,) = properties["disks"]
    assert disk["initialize_params"]["labels"] == properties["labels"] == Owner("j", "l" * 20).labels(TOKEN)
    assert (resource["count"], resource["min_count"]) == (2, 1)
    assert properties["scheduling"]["preemption_notice_duration"] == {"seconds": 120}
    assert properties["guest_accelerators"][0]["accelerator_type"] == "nvidia-tesla-t4"
    tomllib.loads((Path(__file__).parents[3] / "templates/fleets/gcp.toml").read_text())


def test_instances_that_no_launch_here_knows_are_listed(compute: FakeCompute, tmp_path: Path) -> None:
    """Only those that carry our label, and not those of launches that are on record."""

    async def body() -> None:
        for name in ("mine", "lost"):
            await provider_at(tmp_path / name).request(1, TOKEN)
        (mine,) = [one for one in compute.live() if LaunchRecord.read(tmp_path / "mine").launch[:8] in one]
        (lost,) = set(compute.live()) - {mine}
        assert [one["id"] for one in foreign_instances([tmp_path / "mine"])] == [lost]
        assert sweep(tmp_path / "mine") == [mine]
        assert compute.live() == [lost]

    asyncio.run(body())


def test_the_plan_is_made_by_reading_only(compute: FakeCompute, tmp_path: Path) -> None:
    """What `--dry-run` shows has the very request, which the published description allows."""
    shown = planned(tmp_path, [MACHINE_TYPE, "g2-standard-12"])
    assert not {"regionInstances.bulkInsert", "instances.delete"} & set(compute.calls)
    for sent, zone in zip(shown["requests"], ZONES, strict=True):
        resource = sent["arguments"]["bulk_insert_instance_resource_resource"]
        assert list(resource["location_policy"]["locations"]) == [f"zones/{zone}"]
        selections = resource["instance_flexibility_policy"]["instance_selections"]
        assert [row["machine_types"] for row in selections.values()] == [[MACHINE_TYPE], ["g2-standard-12"]]
        Api().change("RegionInstancesClient", "bulk_insert", sent["arguments"])
    assert [request.get("if", "")[:10] for request in shown["requests"]] == ["", "fewer came"]
    assert (shown["gpu"], shown["nodes"]) == ("nvidia-l4", 32)
    assert [(row["instance_type"], row["zone"]) for row in shown["pools"]] == [
        (name, zone) for name in (MACHINE_TYPE, "g2-standard-12") for zone in ZONES
    ]
    print_plan(shown)


def test_a_job_that_goes_on_rents_no_other_machines(compute: FakeCompute, tmp_path: Path) -> None:
    """What was chosen when it began is in its record: what is better now makes no difference."""
    fleet = {**load_fleet("gcp"), "machine_types": [MACHINE_TYPE, "g2-standard-24", "a2-highgpu-4g"]}
    request = LaunchRequest("job", "gpt3-6b", tmp_path, cloud="gcp", nodes=16, fleet=fleet)
    journal = Journal(tmp_path)
    folder = journal.job_folder("job") / "gcp"
    LaunchRecord.at(folder, "job", PROJECT, REGION, "2 x nvidia-l4")
    made = setup(request, load_model("gpt3-6b"), journal)
    assert made.gpus == 2
    assert all(line.startswith("g2-standard-24 in ") for line in made.market[:-1])
    other = replace(request, fleet={**fleet, "machine_types": [MACHINE_TYPE]})
    with pytest.raises(InputError, match="the job has begun on 2 x nvidia-l4"):
        setup(other, load_model("gpt3-6b"), journal)
    journal.close()


def planned(folder: Path, types: list[str], **options: Any) -> Mapping[str, Any]:
    """The plan for gpt3-6b on these machine types."""
    fleet = {**load_fleet("gcp"), "machine_types": types}
    fields = {"cloud": "gcp", "nodes": 32, "fleet": fleet, "cost_table": load_measured_costs(), **options}
    return plan(LaunchRequest("job", "gpt3-6b", folder, **fields), load_model("gpt3-6b"))


def test_a_job_takes_machines_that_are_alike(compute: FakeCompute, tmp_path: Path) -> None:
    """Of several kinds of GPU, or numbers of them, one is chosen; --gpus-per-node decides, or refuses all."""
    types = [MACHINE_TYPE, "g2-standard-24", "a2-highgpu-4g"]
    for gpus, gpu in ((2, "2 x nvidia-l4"), (4, "4 x nvidia-tesla-a100")):
        shown = planned(tmp_path, types, nodes=8, gpus_per_node=gpus)
        assert shown["gpu"] == gpu
        assert len({row["instance_type"] for row in shown["pools"]}) == 1
        pipelines, stages = map(int, shown["layout"].split("x"))
        assert shown["smallest_fleet"] <= pipelines * stages / gpus <= 8
    with pytest.raises(
        InputError, match=r"nvidia-l4: --gpus-per-node is 3, it has 1; 2 x nvidia-l4: .* has 2"
    ):
        planned(tmp_path, types, gpus_per_node=3)


def test_a_stock_out_of_a_type_takes_the_next_at_its_price(compute: FakeCompute, tmp_path: Path) -> None:
    """The dearer type comes from the zone that is out of the better one, which gets some rest, and then back.

    Whoever goes on with the launch finds every instance in its pool, in whatever zone.
    """

    async def body() -> None:
        provider = provider_at(tmp_path, machine_types=[MACHINE_TYPE, "g2-standard-12"])
        compute.out_of = {(ZONES[0], MACHINE_TYPE)}
        (first,) = (await provider.request(1, TOKEN)).instances
        assert (first.pool.instance_type, first.pool.zone) == ("g2-standard-12", ZONES[0])
        assert first.pool.spot_usd_per_hour == pytest.approx(0.36)
        (second,) = (await provider.request(1, TOKEN[::-1])).instances
        assert (second.pool.instance_type, second.pool.zone) == (MACHINE_TYPE, ZONES[1])
        assert second.pool.spot_usd_per_hour == pytest.approx(0.31)
        compute.out_of = set()
        provider._steady = lambda: time.monotonic() + 6
        (third,) = (await provider.request(1, "e" * 32)).instances
        assert (third.pool.instance_type, third.pool.zone) == (MACHINE_TYPE, ZONES[0])
        again = provider_at(tmp_path, machine_types=[MACHINE_TYPE])
        await again.recover([], [])
        held = {one.name: one.pool for one in await again.describe()}
        assert set(held) == {first.name, second.name, third.name}
        assert (held[second.name], held[third.name]) == (second.pool, third.pool)
        assert held[first.name].spot_usd_per_hour == 1.0  # not in the market any more: at the price on demand
        await again.close()
        assert compute.live() == []

    asyncio.run(body())
