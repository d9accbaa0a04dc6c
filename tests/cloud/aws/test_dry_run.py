"""What a dry run shows is what a launch does: requests, the regions compared, and a choice that is kept."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloud.aws.launch_record import LaunchRecord
from cloud.aws.shared import client_key
from parcae_cli.catalogue import load_fleet, load_measured_costs, load_template
from runtime.control.job.job import LaunchRequest
from runtime.control.job.journal import Journal
from runtime.control.providers.aws import anchor, plan, setup
from runtime.planning.errors import InputError
from runtime.planning.model import ModelSpec, parse_model
from tests.cli.conftest import Done, home, parcae  # noqa: F401
from tests.cloud.aws.front import ACCOUNT, Front

# ruff: noqa: F811

EAST, WEST = "us-east-1", "us-west-2"
TYPE, DEARER = "g4dn.xlarge", "g5.xlarge"
MAKING = ("Import", "Create", "Authorize", "Run", "Put", "Set")


def job(
    home: Path, anchor: str = "here", model: str = "gpt-tiny", nodes: int = 2, **settings: Any
) -> tuple[LaunchRequest, ModelSpec]:
    """gpt-tiny on two nodes of the two types."""
    fleet = {**load_fleet("aws"), "instance_types": [TYPE, DEARER], **settings}
    template = load_template(model)
    request = LaunchRequest(
        "job", model, home, cloud="aws", nodes=nodes, template=template, fleet=fleet, anchor=anchor,
        cost_table=load_measured_costs(),
    )  # fmt: skip
    return request, parse_model(template, model)


def price(front: Front, region: str, kind: str, usd_per_hour: float) -> None:
    """In every zone of the region."""
    for zone in front.backends[region].describe_availability_zones():
        front.prices[kind, zone.name] = usd_per_hour


def sent(front: Front) -> list[tuple[str, Any]]:
    """Every call that made or rented something; what only repeats an earlier one is left out."""
    found: list[tuple[str, Any]] = []
    for action, arguments in front.calls:
        if action.startswith(MAKING) and (one := (action, plain(arguments))) not in found:
            found.append(one)
    return found


def plain(value: Any) -> Any:
    """As JSON, with user data in the clear, and the keys in it as a dry run shows them."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, list):
        return [plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    made = {key: plain(item) for key, item in value.items()}
    if "UserData" in made:
        text = made["UserData"]
        if not text.startswith("#cloud-config\n"):
            text = base64.b64decode(text).decode()
        config = json.loads(text.removeprefix("#cloud-config\n"))
        config["ssh_keys"] = dict.fromkeys(config["ssh_keys"], "(made at launch)")
        made["UserData"] = config
    return made


def rent(request: LaunchRequest, spec: ModelSpec, token: str) -> None:
    """What a job does first: everything is made ready, and all nodes are asked for."""

    async def scene() -> None:
        journal = Journal(request.home)
        provider = setup(request, spec, journal).provider
        await provider.start()
        assert len((await provider.request(request.nodes, token)).instances) == request.nodes
        await provider.close()
        journal.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("where", "settings"),
    [
        ("here", {"efa": True, "placement_group": True, "instance_types": ["g4dn.8xlarge"]}),
        ("here", {"regions": [EAST, WEST], "region": "", "notices": "eventbridge"}),
        ("cloud", {"notices": "eventbridge", "anchor_profile": "launcher"}),
    ],
)
def test_the_requests_of_a_dry_run_are_those_that_are_sent(
    ec2: Front, tmp_path: Path, where: str, settings: dict[str, Any]
) -> None:
    """Call by call, in order and with every argument, but for names that only a launch can give."""
    price(ec2, WEST, TYPE, 0.1)  # of several regions it is the better one
    ec2.on_launch = lambda instance: setattr(instance.nics[0], "public_ip", "127.0.0.1")
    request, spec = job(tmp_path, where, **settings)
    told = plan(request, spec)["requests"]
    assert sent(ec2) == []
    folder = tmp_path / "jobs" / "job"
    names, home = {"TOKEN": "t1"}, tmp_path
    if where == "cloud":
        from moto.iam import iam_backends

        backend = iam_backends[ACCOUNT]["aws"]
        if "launcher" not in {one.name for one in backend.get_instance_profiles()}:
            backend.create_instance_profile("launcher", "/", [])
        there = anchor(request, spec, folder)
        there.rent()
        home = tmp_path / "there"
        for path, text in there.files.items():
            (home / path).parent.mkdir(parents=True, exist_ok=True)
            (home / path).write_text(text)
        request = replace(request, home=home, anchor="here", fleet=there.fleet)
        names["ANCHOR-LAUNCH"] = LaunchRecord.read(folder / "anchor" / "launch.json").launch
        # What sweeps from here when the anchor is silent must know of the queue.
        assert LaunchRecord.read(folder / "aws" / "launch.json").events
    rent(request, spec, "t1")
    really = sent(ec2)
    seen = json.dumps(really)
    names["LAUNCH"] = LaunchRecord.read(home / "jobs" / "job" / "aws" / "launch.json").launch
    names["KEY"] = client_key(home)[2][:16]
    names["GROUP"] = re.findall(r"sg-[0-9a-f]+", seen)[0]
    if "eventbridge" in settings.values():
        names["QUEUE-ARN"], names["RULE-ARN"] = re.findall(r"arn:aws:(?:sqs|events):[^\"\\]+", seen)[:2]
        names["QUEUE-URL"] = re.findall(r"http://[^\"]+", seen)[0]
    text = json.dumps([[one["call"], plain(one["arguments"])] for one in told])
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<![A-Z])(?<![A-Z]-){name}(?![A-Z]|-[A-Z])", names[name], text)
    expected = json.loads(text)
    public = client_key(home)[1]
    assert [call.replace("_", "") for call, _ in expected] == [call.lower() for call, _ in really]
    for (call, wanted), (_, got) in zip(expected, really, strict=True):
        if call == "import_key_pair":
            wanted["PublicKeyMaterial"] = public
        if "ClientToken" not in wanted:
            got.pop("ClientToken", None)  # botocore's own
        assert got == wanted, call
    assert ("RunInstances" in seen) is (where == "cloud")


def test_a_dry_run_compares_regions(ec2: Front, tmp_path: Path) -> None:
    """Half the price against a sixth of the chance: the dearer region wins, and a shut one says why."""
    price(ec2, WEST, TYPE, 0.1)
    ec2.scores.update({EAST: 9, WEST: 2})
    kinds = [TYPE, DEARER, "g4dn.2xlarge"]
    request, spec = job(tmp_path, region="", regions=[EAST, WEST], instance_types=kinds)
    rows = {row["region"]: row for row in plan(request, spec)["regions"]}
    assert list(rows) == [EAST, WEST]
    assert [rows[name]["place"] for name in rows] == [1, 2]
    assert [rows[name]["placement_score"] for name in rows] == [9, 2]
    for row in rows.values():
        assert row["worth"] == pytest.approx(row["samples_per_usd"] * row["placement_score"] / 10)
    assert rows[WEST]["spot_usd_per_hour"] == pytest.approx(0.1)
    ec2.scores.update({EAST: 4})
    assert plan(request, spec)["region"] == EAST  # 4 to 2 at twice the price: as good, and named first
    ec2.scores.update({EAST: 3})
    assert plan(request, spec)["region"] == WEST


def test_a_resumed_job_keeps_its_machine_and_regions_at_new_prices(
    ec2: Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine and another region are cheaper now; a resume takes neither."""
    request, spec = job(tmp_path, region="", regions=[EAST, WEST])
    price(ec2, EAST, TYPE, 0.1)
    journal = Journal(tmp_path)
    first = setup(request, spec, journal)
    journal.create_job("job", request.as_json(), 1)
    record = LaunchRecord.read(tmp_path / "jobs" / "job" / "aws" / "launch.json")
    assert record.rental is not None
    assert [pools.region for pools in record.rental.regions] == [EAST, WEST]
    price(ec2, EAST, TYPE, 0.7)
    price(ec2, WEST, DEARER, 0.01)
    assert plan(request, spec)["gpu"] == "A10G"
    again = setup(request, spec, journal)
    assert (again.spec, first.spec) != (None, None)
    assert again.spec.device == first.spec.device  # type: ignore[union-attr]
    assert again.spec.price.spot_usd_per_hour == pytest.approx(0.7)  # type: ignore[union-attr]
    assert again.market[0].startswith(f"{TYPE} in {EAST}")
    kept = LaunchRecord.read(tmp_path / "jobs" / "job" / "aws" / "launch.json")
    assert (kept.launch, kept.region) == (record.launch, EAST)
    with pytest.raises(InputError, match="--max-price-per-hour"):
        setup(replace(request, max_usd_per_hour=0.5), spec, journal)
    monkeypatch.setattr("cloud.aws.api._FIRST_PAUSE_S", 0.0)
    ec2.fault("DescribeSpotPriceHistory", "InternalError", times=100)
    assert setup(request, spec, journal).wanted == 2  # without new prices the last ones stand
    journal.close()


@pytest.mark.parametrize(
    ("kinds", "nodes", "said"),
    [
        ([TYPE], 4, r"T4 with 4 nodes: .*stage 0 needs .* GB"),
        ([TYPE, "g4dn.12xlarge"], 2, r"T4 with 2 nodes: .*; 4 x T4 with 2 nodes: "),
    ],
)
def test_a_model_that_no_gpu_can_hold_is_refused_with_the_arithmetic(
    ec2: Front, tmp_path: Path, kinds: list[str], nodes: int, said: str
) -> None:
    """gpt3-6b on GPUs of 16 GB: what a stage needs, of which parts, and what there is; for each machine."""
    request, spec = job(tmp_path, model="gpt3-6b", nodes=nodes, instance_types=kinds)
    with pytest.raises(InputError, match=said):
        plan(request, spec)


def test_nothing_is_rented_before_somebody_agrees(
    ec2: Front, parcae: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is shown and a no is heeded; where nobody can be asked --yes is wanted; --yes asks nobody."""
    command = ("launch", "gpt-tiny", "--cloud", "aws", "--nodes", "2")
    done = parcae(*command)
    assert (done.code, "--yes" in done.err) == (2, True), done
    assert ec2.calls == []
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: "n"))
    monkeypatch.setattr("builtins.input", lambda prompt="": "n")
    done = parcae(*command)
    assert (done.code, sent(ec2)) == (130, []), done
    assert "USD" in done.out + done.err and "nothing was rented" in done.err
    carried_out: list[LaunchRequest] = []
    monkeypatch.setattr("parcae_cli.commands.launch.carry_out", carried_out.append)
    monkeypatch.setattr("parcae_cli.commands.launch.finish", lambda result, as_json: None)
    assert parcae(*command, "--yes").code == 0
    assert [one.nodes for one in carried_out] == [2]


def test_without_credentials_a_launch_is_one_line_that_says_what_to_do(
    parcae: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 4, and nothing is made, not even here."""
    pytest.importorskip("boto3")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    command = ("launch", "gpt3-6b", "--cloud", "aws", "--nodes", "16", "--backup", "none")
    for more in ("--dry-run", "--yes"):
        done = parcae(*command, more)
        assert (done.code, done.out) == (4, "")
        (line,) = done.err.splitlines()
        assert "aws: no credentials found. Run `aws configure`" in line
    assert not (Path(os.environ["PARCAE_HOME"]) / "jobs").exists()


def test_a_backup_that_this_machine_cannot_hold_is_foretold(
    ec2: Front, parcae: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three states of gpt3-6b, beside what there is; nothing where the backup is elsewhere, or fits."""
    monkeypatch.setattr("parcae_cli.launch_checks.memory_bytes", lambda: 16e9)
    command = ("--cloud", "aws", "--nodes", "16", "--dry-run", "--json")
    done = parcae("launch", "gpt3-6b", *command)
    assert done.code == 0 and json.loads(done.out)["plan"]["nodes"] == 16
    assert re.search(r"may take 249 GB of memory here, where there are 16: --anchor cloud", done.err)
    assert parcae("launch", "gpt3-6b", *command, "--backup", "none").err == ""
    assert parcae("launch", "gpt-tiny", *command).err == ""
