"""The requests that are sent to EC2, as data: from what is wanted to the API's arguments. Pure."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloud.aws.settings import AwsSettings
from cloud.types import Pool

JOB_TAG = "parcae:job"
LAUNCH_TAG = "parcae:launch"
TOKEN_TAG = "parcae:token"
ROLE_TAG = "parcae:role"
SHARED_TAG = "parcae:shared"
GROUP_NAME = "parcae-nodes"
ANYWHERE, SSH_PORT = "0.0.0.0/0", 22
ANCHOR_DISK_GB = 30

Request = dict[str, Any]


@dataclass(frozen=True)
class Owner:
    """Whose something is: the job's name, and an id that no other launch anywhere has."""

    job: str
    launch: str

    def tags(self, token: str = "") -> list[dict[str, str]]:
        """As EC2 wants tags; with the token of the request that made it."""
        pairs = {JOB_TAG: self.job, LAUNCH_TAG: self.launch, "Name": f"parcae-{self.job}"}
        if token:
            pairs[TOKEN_TAG] = token
        return _tags(pairs)

    def filters(self) -> list[dict[str, Any]]:
        """What finds everything of this launch."""
        return [{"Name": f"tag:{LAUNCH_TAG}", "Values": [self.launch]}]


@dataclass(frozen=True)
class PoolPlan:
    """A pool that may be asked for, and the subnet that is in its zone."""

    pool: Pool
    subnet: str

    @property
    def key(self) -> str:
        """Type and zone, as a person says it."""
        return f"{self.pool.instance_type} in {self.pool.zone}"


def _tags(pairs: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in sorted(pairs.items())]


def launch_template_name(owner: Owner) -> str:
    """One template a launch: it holds the launch's host key."""
    return f"parcae-{owner.launch}"


def launch_template_request(
    owner: Owner, settings: AwsSettings, image: str, key_name: str, group: str, user_data: str
) -> Request:
    """CreateLaunchTemplate: all that nodes have in common.

    IMDSv2 only; a shutdown from inside terminates, which is what the dead man's switch needs.
    """
    data: dict[str, Any] = {
        "ImageId": image,
        "KeyName": key_name,
        "UserData": base64.b64encode(user_data.encode()).decode(),
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": 2,
        },
        # What CreateFleet itself does not tag: it takes tags for fleets and instances.
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": owner.tags()}
            for kind in ("volume", "network-interface", "spot-instances-request")
        ],
        "BlockDeviceMappings": [
            {
                "DeviceName": "/dev/sda1",
                "Ebs": {"VolumeSize": settings.disk_gb, "VolumeType": "gp3", "DeleteOnTermination": True},
            }
        ],
    }
    if settings.efa:
        data["NetworkInterfaces"] = [
            {
                "DeviceIndex": 0,
                "InterfaceType": "efa",
                "Groups": [group],
                "AssociatePublicIpAddress": True,
                "DeleteOnTermination": True,
            }
        ]
    else:
        data["SecurityGroupIds"] = [group]
    return {
        "LaunchTemplateName": launch_template_name(owner),
        "LaunchTemplateData": data,
        "TagSpecifications": [{"ResourceType": "launch-template", "Tags": owner.tags()}],
    }


def fleet_request(
    owner: Owner,
    settings: AwsSettings,
    pools: Sequence[PoolPlan],
    count: int,
    at_least: int,
    token: str,
    attempt: int = 0,
    template: str = "",
) -> Request:
    """CreateFleet of type instant: up to `count` spot instances from these pools; none if under `at_least`.

    `at_least` above 1 asks for one zone and one type, since EC2 demands that, and since a pipeline wants it.
    Nothing here replaces an instance behind our back. A request may take several attempts at other pools:
    each has a client token of its own, all carry the request's token as a tag.
    """
    spot: dict[str, Any] = {
        "AllocationStrategy": "price-capacity-optimized",
        "InstanceInterruptionBehavior": "terminate",
    }
    if at_least > 1:
        spot |= {"SingleInstanceType": True, "SingleAvailabilityZone": True, "MinTargetCapacity": at_least}
    overrides = []
    for plan in pools:
        override: dict[str, Any] = {"InstanceType": plan.pool.instance_type, "SubnetId": plan.subnet}
        if settings.max_price_usd_per_hour:
            override["MaxPrice"] = f"{settings.max_price_usd_per_hour:g}"
        if settings.placement_group:
            override["Placement"] = {"GroupName": launch_template_name(owner)}
        overrides.append(override)
    tags = owner.tags(token)
    return {
        "Type": "instant",
        "ClientToken": f"{token}-{attempt}",
        "SpotOptions": spot,
        "LaunchTemplateConfigs": [
            {
                "LaunchTemplateSpecification": {
                    "LaunchTemplateName": template or launch_template_name(owner),
                    "Version": "$Latest",
                },
                "Overrides": overrides,
            }
        ],
        "TargetCapacitySpecification": {
            "TotalTargetCapacity": count,
            "SpotTargetCapacity": count,
            "OnDemandTargetCapacity": 0,
            "DefaultTargetCapacityType": "spot",
        },
        "TagSpecifications": [
            {"ResourceType": "fleet", "Tags": tags},
            {"ResourceType": "instance", "Tags": tags},
        ],
    }


def group_name(settings: AwsSettings) -> str:
    """One group for all jobs of a VPC that let the same come in: rules are added, never taken away."""
    if (settings.ssh_from, settings.ssh_port) == (ANYWHERE, SSH_PORT):
        return GROUP_NAME
    told = f"{settings.ssh_from} {settings.ssh_port}".encode()
    return f"{GROUP_NAME}-{hashlib.sha256(told).hexdigest()[:8]}"


def group_request(vpc: str, settings: AwsSettings) -> Request:
    """CreateSecurityGroup."""
    name = group_name(settings)
    return {
        "GroupName": name,
        "Description": "Parcae nodes: SSH from outside, everything among themselves",
        "VpcId": vpc,
        "TagSpecifications": [
            {"ResourceType": "security-group", "Tags": _tags({SHARED_TAG: name, "Name": name})}
        ],
    }


def group_rules_requests(group: str, settings: AwsSettings) -> tuple[Request, ...]:
    """AuthorizeSecurityGroupIngress: SSH, and whatever nodes say to each other.

    One call a rule: a rule that is there already makes EC2 refuse all that come with it.
    """
    rules: tuple[dict[str, Any], ...] = (
        {
            "IpProtocol": "tcp",
            "FromPort": settings.ssh_port,
            "ToPort": settings.ssh_port,
            "IpRanges": [{"CidrIp": settings.ssh_from, "Description": "SSH, keys only"}],
        },
        {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]},
    )
    return tuple({"GroupId": group, "IpPermissions": [rule]} for rule in rules)


def group_egress_requests(group: str, settings: AwsSettings) -> tuple[Request, ...]:
    """AuthorizeSecurityGroupEgress: the rule that lets all out is for IP; what an adapter sends past the
    kernel is let out to the group alone.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-start.html
    """
    rule = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    return ({"GroupId": group, "IpPermissions": [rule]},) if settings.efa else ()


def key_pair_name(fingerprint: str) -> str:
    """One key pair for each key, so that another machine's key never takes its place."""
    return f"parcae-{fingerprint[:16]}"


def key_pair_request(name: str, public_key: str) -> Request:
    """ImportKeyPair: the private half never leaves this machine."""
    return {
        "KeyName": name,
        "PublicKeyMaterial": public_key.encode(),
        "TagSpecifications": [{"ResourceType": "key-pair", "Tags": _tags({SHARED_TAG: "key"})}],
    }


def placement_group_request(owner: Owner) -> Request:
    """CreatePlacementGroup: nodes close to each other."""
    return {
        "GroupName": launch_template_name(owner),
        "Strategy": "cluster",
        "TagSpecifications": [{"ResourceType": "placement-group", "Tags": owner.tags()}],
    }


def anchor_request(
    owner: Owner,
    profile: str,
    kind: str,
    image: str,
    key_name: str,
    group: str,
    subnet: str,
    user_data: str,
    token: str,
) -> Request:
    """RunInstances: one machine on demand for the launcher and the backup, with the role of `profile`.

    The user data is plain text: the client encodes it in this call.
    """
    tags = [*owner.tags(token), *_tags({ROLE_TAG: "anchor"})]
    return {
        "InstanceType": kind,
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": token,
        "ImageId": image,
        "KeyName": key_name,
        "SecurityGroupIds": [group],
        "SubnetId": subnet,
        "UserData": user_data,
        "IamInstanceProfile": {"Arn" if profile.startswith("arn:") else "Name": profile},
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
        "BlockDeviceMappings": [
            {
                "DeviceName": "/dev/sda1",
                "Ebs": {"VolumeSize": ANCHOR_DISK_GB, "VolumeType": "gp3", "DeleteOnTermination": True},
            }
        ],
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": tags},
            {"ResourceType": "volume", "Tags": tags},
        ],
    }
