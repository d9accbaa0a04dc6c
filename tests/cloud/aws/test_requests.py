"""What is sent to EC2, from what is wanted; and the script that instances are born with."""

from __future__ import annotations

import base64
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from cloud.aws.bootstrap import HostKey, bootstrap_script, new_host_key, user_data
from cloud.aws.event_requests import queue_request, rule_request
from cloud.aws.instances import seen
from cloud.aws.requests import (
    LAUNCH_TAG,
    SHARED_TAG,
    Owner,
    PoolPlan,
    anchor_request,
    fleet_request,
    group_name,
    group_request,
    group_rules_requests,
    key_pair_request,
    launch_template_request,
    placement_group_request,
)
from cloud.aws.settings import AwsSettings
from cloud.pools import Pools
from cloud.types import InstanceState, Pool
from tests.cloud.aws.settings import aws_settings

OWNER = Owner("job", "abc123")


def plans(*pairs: tuple[str, str]) -> list[PoolPlan]:
    """Pools by type and zone."""
    return [PoolPlan(Pool(zone, kind, 1, 0.2, 0.5), f"subnet-{zone}") for kind, zone in pairs]


def check(operation: str, request: dict[str, Any]) -> None:
    """By botocore's own model of the API."""
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ec2")
    shape = model.operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()


@pytest.mark.parametrize("efa", [False, True])
def test_every_request_is_one_that_ec2_knows(efa: bool) -> None:
    """Each of them passes the validation of the service's model."""
    settings = aws_settings(efa=efa, placement_group=efa, max_price_usd_per_hour=0.4 if efa else 0.0)
    check("ImportKeyPair", key_pair_request("k", "ssh-ed25519 AAAA"))
    check("CreateSecurityGroup", group_request("vpc-1", settings))
    for rule in group_rules_requests("sg-1", settings):
        check("AuthorizeSecurityGroupIngress", rule)
    check("CreatePlacementGroup", placement_group_request(OWNER))
    check("CreateLaunchTemplate", launch_template_request(OWNER, settings, "ami-1", "k", "sg-1", "data"))
    check("CreateFleet", fleet_request(OWNER, settings, plans(("g5.xlarge", "a")), 4, 2, "t"))


def test_a_fleet_is_spot_instant_and_never_replaced_behind_our_back() -> None:
    """The choices that cost money or instances when they are wrong."""
    settings = aws_settings()
    request = fleet_request(
        OWNER, settings, plans(("g5.xlarge", "a"), ("g5.xlarge", "b")), 4, 2, "t", attempt=1
    )
    assert request["Type"] == "instant"
    assert request["ClientToken"] == "t-1"
    assert request["SpotOptions"] == {
        "AllocationStrategy": "price-capacity-optimized",
        "InstanceInterruptionBehavior": "terminate",
        "SingleInstanceType": True,
        "SingleAvailabilityZone": True,
        "MinTargetCapacity": 2,
    }
    assert request["TargetCapacitySpecification"]["OnDemandTargetCapacity"] == 0
    assert "MaxPrice" not in json.dumps(request)
    kinds = {spec["ResourceType"] for spec in request["TagSpecifications"]}
    assert kinds == {"fleet", "instance"}
    tags = {tag["Key"]: tag["Value"] for tag in request["TagSpecifications"][1]["Tags"]}
    assert (tags["parcae:job"], tags["parcae:launch"], tags["parcae:token"]) == ("job", "abc123", "t")
    single = fleet_request(OWNER, settings, plans(("g5.xlarge", "a")), 1, 1, "t")
    assert "MinTargetCapacity" not in single["SpotOptions"]
    priced = fleet_request(
        OWNER, aws_settings(max_price_usd_per_hour=0.35), plans(("g5.xlarge", "a")), 1, 1, "t"
    )
    assert priced["LaunchTemplateConfigs"][0]["Overrides"][0]["MaxPrice"] == "0.35"


def test_all_that_is_made_is_tagged() -> None:
    """Whatever a launch makes can be traced to its job, and what launches share to us."""
    settings = aws_settings()
    template = launch_template_request(OWNER, settings, "ami-1", "k", "sg-1", "data")
    fleet = fleet_request(OWNER, settings, plans(("g5.xlarge", "a")), 1, 1, "t")
    anchor = anchor_request(OWNER, "role", "m6i.large", "ami-1", "k", "sg-1", "subnet-1", "#", "t")
    made = [template, template["LaunchTemplateData"], fleet, placement_group_request(OWNER), anchor]
    tagged = {spec["ResourceType"]: spec["Tags"] for one in made for spec in one["TagSpecifications"]}
    assert set(tagged) == {
        "launch-template", "fleet", "instance", "volume", "network-interface", "spot-instances-request",
        "placement-group",
    }  # fmt: skip
    for tags in (*tagged.values(), rule_request(OWNER)["Tags"]):
        assert {"Key": LAUNCH_TAG, "Value": OWNER.launch} in tags
    assert queue_request(OWNER)["tags"][LAUNCH_TAG] == OWNER.launch
    for shared in (key_pair_request("k", "ssh-ed25519 AAAA"), group_request("vpc-1", settings)):
        assert [tag["Key"] for tag in shared["TagSpecifications"][0]["Tags"]].count(SHARED_TAG) == 1


def test_who_narrows_the_door_gets_a_group_of_its_own() -> None:
    """A rule is never taken away, so a group with the wide door must not be used again."""
    wide, narrow = aws_settings(), aws_settings(ssh_from="203.0.113.7/32")
    assert group_name(wide) == "parcae-nodes"
    assert group_name(narrow) != group_name(aws_settings(ssh_from="203.0.113.8/32")) != group_name(wide)
    request = group_request("vpc-1", narrow)
    tags = {tag["Key"]: tag["Value"] for tag in request["TagSpecifications"][0]["Tags"]}
    assert request["GroupName"] == tags[SHARED_TAG] == group_name(narrow)


def test_a_template_shuts_the_back_doors() -> None:
    """IMDSv2 only, a shutdown terminates, the disk goes with the instance."""
    request = launch_template_request(OWNER, aws_settings(), "ami-1", "k", "sg-1", "#cloud-config\n{}")
    data = request["LaunchTemplateData"]
    assert data["MetadataOptions"]["HttpTokens"] == "required"
    assert data["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert data["BlockDeviceMappings"][0]["Ebs"]["DeleteOnTermination"] is True
    assert base64.b64decode(data["UserData"]) == b"#cloud-config\n{}"


def test_user_data_carries_our_host_key_and_the_script() -> None:
    """Cloud-init takes the key as it is, makes none of its own, and runs the filled script."""
    key = new_host_key()
    text = user_data(aws_settings(), key)
    config = json.loads(text.removeprefix("#cloud-config\n"))
    assert config["ssh_keys"] == {"ed25519_private": key.private, "ed25519_public": key.public}
    assert config["ssh_deletekeys"] is True
    script = config["write_files"][0]["content"]
    assert "@" not in script.replace("$@", "").replace("@HOME@", "@") or "@PYTHON@" not in script
    assert config["runcmd"] == [[config["write_files"][0]["path"]]]
    with pytest.raises(ValueError, match="16384"):
        user_data(aws_settings(bootstrap="x" * 20000), HostKey("a", "b"))


def run_bootstrap(home: Path, **changes: Any) -> subprocess.Popen[bytes]:
    """The script itself, with a home here and a harmless shutdown."""
    script = bootstrap_script(aws_settings(**changes)).replace("/home/ubuntu", str(home))
    script = script.replace("shutdown -h now", f"touch {home}/shut-down").replace("sleep 60;", "sleep 0.1;")
    return subprocess.Popen(["/bin/sh", "-c", script], cwd=home)


def wait_for(path: Path, within_s: float = 10.0) -> bool:
    """Whether the file comes in time."""
    deadline_s = time.monotonic() + within_s
    while not path.exists() and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return path.exists()


def test_the_bootstrap_tells_when_it_is_ready_and_when_it_failed(tmp_path: Path) -> None:
    """Files say how it went, and the log why. The dead man's switch works from the first moment on."""
    import sys

    good, bad = tmp_path / "good", tmp_path / "bad"
    for home in (good, bad):
        home.mkdir()
    times = {"dead_man_s": 1}
    ready = run_bootstrap(good, python=sys.executable, packages=[], times=times)
    failed = run_bootstrap(bad, python="/no/such/python", packages=[], times=times)
    assert ready.wait(20) == 0
    assert failed.wait(20) != 0
    assert wait_for(good / ".parcae-ready", 0)
    assert not (good / ".parcae-failed").exists()
    assert wait_for(bad / ".parcae-failed", 0)
    assert "/no/such/python" in (bad / ".parcae-bootstrap.log").read_text()
    # Nobody touches the lease: both machines end themselves.
    assert wait_for(good / "shut-down")
    assert wait_for(bad / "shut-down")


def test_a_machine_whose_lease_is_taken_away_ends_at_once(tmp_path: Path) -> None:
    """An anchor that nobody needs any more removes the lease: no need to wait until it would have run out."""
    import sys

    settings = {"python": sys.executable, "packages": [], "times": {"dead_man_s": 36000}}
    assert run_bootstrap(tmp_path, **settings).wait(20) == 0
    assert not (tmp_path / "shut-down").exists()
    (tmp_path / ".parcae-lease").unlink()
    assert wait_for(tmp_path / "shut-down")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"instance_typos": []}, "instance_typos: no such key"),
        ({"instance_types": []}, "instance_types: name one"),
        ({"instance_types": "g5.xlarge"}, "must be a list of strings"),
        ({"disk_gb": "100"}, "disk_gb: must be of kind int"),
        ({"efa": 1}, "efa: must be of kind bool"),
        ({"device": "mine"}, "device: must be"),
        ({"times": {"boot_s": 0}}, "times.boot_s: must be a number above 0"),
        ({"gpus": {"T4": {"flops_per_s": 1e12}}}, "gpus.T4: link_bytes_per_s missing"),
    ],
)
def test_wrong_settings_name_their_key(change: dict[str, Any], words: str) -> None:
    """Every complaint says which key it is about."""
    with pytest.raises(ValueError, match=words.replace("[", r"\[")):
        AwsSettings.parse({"instance_types": ["g5.xlarge"], **change})


def test_pools_rest_longer_every_time() -> None:
    """A pool without capacity is left alone, twice as long after each failure, ten minutes at most."""
    pools = Pools([plan.pool for plan in plans(("g5.xlarge", "a"), ("g6.xlarge", "a"))], 60.0)
    pools.failed("g5.xlarge", "a", "stock-out", 0.0)
    assert [pool.instance_type for pool in pools.open(1.0)] == ["g6.xlarge"]
    assert pools.shortage(1.0) == ""
    pools.failed("g6.xlarge", "a", "stock-out", 1.0)
    assert pools.shortage(1.0) == (
        "no capacity in g5.xlarge in a; g6.xlarge in a (stock-out); asking again in 59 s"
    )
    now_s = 60.0
    for expected_s in (120.0, 240.0, 480.0, 600.0, 600.0):
        pools.failed("g5.xlarge", "a", "stock-out", now_s)
        pools.failed("g6.xlarge", "a", "stock-out", now_s)
        assert pools.next_open_s(now_s) == expected_s
        now_s += expected_s
    pools.gave("g5.xlarge", "a")
    pools.failed("g5.xlarge", "a", "stock-out", now_s)
    assert pools.next_open_s(now_s) in (0.0, 60.0)


@pytest.mark.parametrize(
    ("state", "ours"),
    [
        ("pending", InstanceState.BOOTING),
        ("running", InstanceState.RUNNING),
        ("shutting-down", InstanceState.TERMINATING),
        ("stopped", InstanceState.TERMINATING),
        ("terminated", InstanceState.TERMINATED),
    ],
)
def test_states_are_the_apis(state: str, ours: InstanceState) -> None:
    """Only what the API calls terminated is terminated: all else may still be billed."""
    one = seen({"InstanceId": "i-1", "State": {"Name": state}, "Placement": {"AvailabilityZone": "a"}})
    assert one.instance.state is ours
    assert one.ended is (state == "terminated")


def test_an_anchor_is_on_demand_has_a_role_and_ends_by_its_own_shutdown() -> None:
    """EC2's own model accepts the request; nothing in it asks for spot, and its tags name job and role."""
    from botocore.session import get_session
    from botocore.validate import ParamValidator

    from cloud.aws.requests import JOB_TAG, ROLE_TAG

    owner = Owner("job", "launch")
    request = anchor_request(owner, "role", "m6i.large", "ami-1", "key", "sg-1", "subnet-1", "#", "token-0")
    shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert not ParamValidator().validate(request, shape).has_errors()
    assert "InstanceMarketOptions" not in request
    assert request["InstanceInitiatedShutdownBehavior"] == "terminate"
    tags = {tag["Key"]: tag["Value"] for tag in request["TagSpecifications"][0]["Tags"]}
    assert (tags[JOB_TAG], tags[ROLE_TAG]) == ("job", "anchor")


def test_the_anchor_is_the_cheapest_type_that_holds_the_backup() -> None:
    """A named one is taken as it is, an unknown or too large a need is refused by key."""
    from cloud.anchor import anchor_type

    assert anchor_type(aws_settings(), 2e9)[0] == "m6i.large"
    assert anchor_type(aws_settings(), 243e9)[0] == "r6i.8xlarge"
    assert anchor_type(aws_settings(anchor_type="r6i.large"), 243e9)[0] == "r6i.large"
    with pytest.raises(ValueError, match="anchor_type"):
        anchor_type(aws_settings(anchor_type="x1.nothing"), 1.0)
    with pytest.raises(ValueError, match="anchors"):
        anchor_type(aws_settings(), 1e15)
