"""The requests that are sent to Compute Engine, as data: from what is wanted to the client's arguments. Pure.

Keys are those of google-cloud-compute (`snake_case`), which turns them into the API's own.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloud.gcp.settings import GcpSettings
from cloud.types import Pool

JOB_LABEL = "parcae-job"
LAUNCH_LABEL = "parcae-launch"
TOKEN_LABEL = "parcae-token"
ROLE_LABEL = "parcae-role"
SSH_PORT_ITEM = "ssh-port"
ANCHOR_DISK_GB = 30
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"  # what it may do is for the account's roles to say

Request = dict[str, Any]
_NOT_IN_LABELS = re.compile(r"[^a-z0-9_-]")


@dataclass(frozen=True)
class Owner:
    """Whose something is: the job's name, and an id that no other launch anywhere has (20 hex digits)."""

    job: str
    launch: str

    def labels(self, token: str) -> dict[str, str]:
        """As Compute Engine wants labels: 63 lower-case letters, digits, dashes and underscores at most."""
        job = _NOT_IN_LABELS.sub("-", self.job.lower())[:63]
        return {JOB_LABEL: job, LAUNCH_LABEL: self.launch, TOKEN_LABEL: token}

    @property
    def filter(self) -> str:
        """What finds every instance of this launch."""
        return f"labels.{LAUNCH_LABEL} = {self.launch}"


def request_id(token: str, number: int) -> str:
    """A UUID that is the same for the same attempt, whoever makes it: Compute Engine then repeats nothing."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{token}-{number}"))


def bulk_insert_request(
    owner: Owner,
    settings: GcpSettings,
    project: str,
    region: str,
    pools: Sequence[Pool],
    count: int,
    at_least: int,
    token: str,
    number: int,
    public_key: str,
    startup_script: str,
) -> Request:
    """regionInstances.bulkInsert: up to `count` spot instances in one of the pools' zones, or none if fewer
    than `at_least` are to be had. Of several machine types the first is taken as far as it goes.

    A preempted instance is deleted, not stopped, so that its disk costs nothing either; one that we forget
    ends itself after `longest_run_s`.
    """
    types = list(dict.fromkeys(pool.instance_type for pool in pools))
    zones = sorted({pool.zone for pool in pools})
    scheduling = _scheduling("SPOT", "TERMINATE", settings.times.longest_run_s)
    if settings.notice_s != 30:
        scheduling["preemption_notice_duration"] = {"seconds": settings.notice_s}
    labels = owner.labels(token)
    properties = _properties(settings, labels, scheduling, settings.disk_gb, public_key, startup_script)
    if settings.accelerator:
        properties["guest_accelerators"] = [
            {"accelerator_type": settings.accelerator, "accelerator_count": 1}
        ]
    resource: dict[str, Any] = {
        "count": count,
        "min_count": at_least,
        "name_pattern": f"parcae-{owner.launch[:8]}-{token[:8]}-{number}-####",
        "instance_properties": properties,
        "location_policy": _in_one_of(zones),
    }
    if len(types) == 1:
        properties["machine_type"] = types[0]
    else:
        resource["instance_flexibility_policy"] = {
            "instance_selections": {
                f"rank-{rank}": {"machine_types": [name], "rank": rank} for rank, name in enumerate(types)
            }
        }
    return _bulk_insert(project, region, request_id(token, number), resource)


def anchor_request(
    owner: Owner,
    settings: GcpSettings,
    project: str,
    region: str,
    zone: str,
    kind: str,
    token: str,
    number: int,
    public_key: str,
    startup_script: str,
) -> Request:
    """regionInstances.bulkInsert of one: a machine on demand for the launcher and the backup, which may act
    as the service account of the settings. `settings` are the anchor's own (its image).

    It moves away from maintenance by itself, is deleted after `anchor_longest_s`, and is not started again
    when its host has died: the launcher's memory would be gone all the same.
    """
    scheduling = _scheduling("STANDARD", "MIGRATE", settings.times.anchor_longest_s)
    labels = {**owner.labels(token), ROLE_LABEL: "anchor"}
    properties = _properties(settings, labels, scheduling, ANCHOR_DISK_GB, public_key, startup_script)
    properties["machine_type"] = kind
    properties["service_accounts"] = [{"email": settings.anchor_account, "scopes": [_SCOPE]}]
    resource = {
        "count": 1,
        "min_count": 1,
        "name_pattern": f"parcae-{owner.launch[:8]}-anchor-{number}-#",
        "instance_properties": properties,
        "location_policy": _in_one_of([zone]),
    }
    return _bulk_insert(project, region, request_id(token, number), resource)


def _scheduling(model: str, maintenance: str, longest_run_s: float) -> dict[str, Any]:
    """How an instance runs, and ends: deleted with its disk, and never started again.

    A longest time may be asked for under every model but the old `preemptible`. Source: Compute Engine's
    documentation, "Limit the run time of a VM".
    """
    return {
        "provisioning_model": model,
        "instance_termination_action": "DELETE",
        "on_host_maintenance": maintenance,
        "automatic_restart": False,
        "max_run_duration": {"seconds": int(longest_run_s)},
    }


def _properties(
    settings: GcpSettings,
    labels: Mapping[str, str],
    scheduling: Mapping[str, Any],
    disk_gb: int,
    public_key: str,
    startup_script: str,
) -> dict[str, Any]:
    """What every instance of ours is like; the machine type is missing."""
    items = {
        "ssh-keys": f"{settings.user}:{public_key.strip()}",
        "block-project-ssh-keys": "TRUE",
        "enable-oslogin": "FALSE",
        SSH_PORT_ITEM: str(settings.ssh_port),
        "startup-script": startup_script,
    }
    return {
        "labels": dict(labels),
        "scheduling": dict(scheduling),
        "disks": [
            {
                "boot": True,
                "auto_delete": True,
                "initialize_params": {
                    "source_image": settings.image,
                    "disk_size_gb": disk_gb,
                    "labels": dict(labels),
                },
            }
        ],
        "network_interfaces": [
            {
                "network": settings.network,
                "access_configs": [{"name": "External NAT", "type_": "ONE_TO_ONE_NAT"}],
            }
        ],
        "metadata": {"items": [{"key": key, "value": value} for key, value in items.items()]},
    }


def _in_one_of(zones: Sequence[str]) -> dict[str, Any]:
    return {
        "target_shape": "ANY_SINGLE_ZONE",
        "locations": {f"zones/{zone}": {"preference": "ALLOW"} for zone in zones},
    }


def _bulk_insert(project: str, region: str, id_: str, resource: dict[str, Any]) -> Request:
    return {
        "project": project,
        "region": region,
        "request_id": id_,
        "bulk_insert_instance_resource_resource": resource,
    }


def delete_request(project: str, zone: str, name: str) -> Request:
    """instances.delete. The same for the same instance, whoever asks, so asking twice is asking once."""
    return {"project": project, "zone": zone, "instance": name}


def capacity_history_request(project: str, region: str, pool: Pool) -> Request:
    """advice.capacityHistory: what a pool has cost, and how often its instances were preempted."""
    return {
        "project": project,
        "region": region,
        "capacity_history_request_resource": {
            "types": ["PREEMPTION", "PRICE"],
            "instance_properties": {
                "machine_type": pool.instance_type,
                "scheduling": {"provisioning_model": "SPOT"},
            },
            "location_policy": {"location": f"zones/{pool.zone}"},
        },
    }


def capacity_request(project: str, region: str, types: Sequence[str], size: int) -> Request:
    """advice.capacity: how likely so many spot instances are to be had, and for how long."""
    return {
        "project": project,
        "region": region,
        "capacity_advice_request_resource": {
            "size": size,
            "distribution_policy": {"target_shape": "ANY_SINGLE_ZONE"},
            "instance_flexibility_policy": {"instance_selections": {"any": {"machine_types": list(types)}}},
            "instance_properties": {"scheduling": {"provisioning_model": "SPOT"}},
        },
    }


def preempted_request(project: str, zone: str) -> Request:
    """zoneOperations.list: the preemptions that this project has suffered."""
    return {"project": project, "zone": zone, "filter": 'operationType = "compute.instances.preempted"'}


def last_part(url: str) -> str:
    """The name at the end of a resource's URL."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def items_of(metadata: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """An instance's metadata items as a table."""
    return {str(item["key"]): str(item.get("value", "")) for item in metadata}
