"""What launches need beside instances: key pair, security group, launch template. Made once, found by tag."""

from __future__ import annotations

from pathlib import Path

from cloud.aws.api import Api, ApiError
from cloud.aws.bootstrap import user_data
from cloud.aws.errors import Verdict
from cloud.aws.event_queue import remove_queue
from cloud.aws.launch_record import LaunchRecord
from cloud.aws.requests import (
    SHARED_TAG,
    Owner,
    group_egress_requests,
    group_name,
    group_request,
    group_rules_requests,
    key_pair_name,
    key_pair_request,
    launch_template_name,
    launch_template_request,
    placement_group_request,
)
from cloud.aws.settings import AwsSettings
from cloud.private_file import write_private
from cloud.provider import CloudError


def client_key(home: Path) -> tuple[str, str, str]:
    """This user's SSH key for AWS nodes: private and public OpenSSH text, and a short fingerprint."""
    import hashlib

    import asyncssh

    path = home / "aws" / "ssh_key"
    if not path.exists():
        write_private(path, asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode())
    key = asyncssh.import_private_key(path.read_text())
    public = key.export_public_key().decode().strip()
    return path.read_text(), public, hashlib.sha256(key.public_data).hexdigest()


def ensure_key_pair(api: Api, public: str, fingerprint: str) -> str:
    """The name of the imported key; imported now if it is not there."""
    name = key_pair_name(fingerprint)
    try:
        api.call("describe_key_pairs", {"KeyNames": [name]})
    except ApiError as error:
        if error.verdict is not Verdict.NOT_FOUND:
            raise error.sorted from error
        _unless_there(api, "import_key_pair", key_pair_request(name, public), "InvalidKeyPair.Duplicate")
    return name


def ensure_group(api: Api, settings: AwsSettings, vpc: str) -> str:
    """The id of the nodes' security group in this VPC."""
    name = group_name(settings)
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": f"tag:{SHARED_TAG}", "Values": [name]}]
    found = api.pages("describe_security_groups", {"Filters": filters}, "SecurityGroups")
    if found:
        group = str(found[0]["GroupId"])
    else:
        _unless_there(api, "create_security_group", group_request(vpc, settings), "InvalidGroup.Duplicate")
        named = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [name]}]
        group = str(api.pages("describe_security_groups", {"Filters": named}, "SecurityGroups")[0]["GroupId"])
    for rule in group_rules_requests(group, settings):
        _unless_there(api, "authorize_security_group_ingress", rule, "InvalidPermission.Duplicate")
    for rule in group_egress_requests(group, settings):
        _unless_there(api, "authorize_security_group_egress", rule, "InvalidPermission.Duplicate")
    return group


def ensure_template(
    api: Api, record: LaunchRecord, settings: AwsSettings, image: str, key_name: str, group: str
) -> str:
    """The name of this launch's template."""
    try:
        data = user_data(settings, record.host_key)
    except ValueError as error:
        raise CloudError(f"aws: {error}: shorten templates/bootstrap/aws.sh") from error
    request = launch_template_request(record.owner, settings, image, key_name, group, data)
    _unless_there(api, "create_launch_template", request, "InvalidLaunchTemplateName.AlreadyExistsException")
    if settings.placement_group:
        group_name = placement_group_request(record.owner)
        _unless_there(api, "create_placement_group", group_name, "InvalidPlacementGroup.Duplicate")
    return launch_template_name(record.owner)


def remove_launch(api: Api, owner: Owner, placement_group: bool, events: bool) -> None:
    """Give back what belongs to one launch alone. What is gone already is no error."""
    name = launch_template_name(owner)
    calls = [("delete_launch_template", {"LaunchTemplateName": name})]
    if placement_group:
        calls.append(("delete_placement_group", {"GroupName": name}))
    for operation, request in calls:
        try:
            api.call(operation, request)
        except ApiError as error:
            if error.verdict is not Verdict.NOT_FOUND:
                raise error.sorted from error
    if events:
        try:
            remove_queue(api, owner)
        except ApiError as error:
            raise error.sorted from error


def image_id(api: Api, settings: AwsSettings) -> str:
    """The image to boot: the one that was named, or the newest Deep Learning AMI.

    Raises:
        CloudError: Systems Manager does not know the parameter.
    """
    if settings.image:
        return settings.image
    try:
        reply = api.call("get_parameter", {"Name": settings.image_parameter}, "ssm")
    except ApiError as error:
        raise type(error.sorted)(
            f"{error.sorted}. It was to name the image: give `image` in the file of --fleet"
        ) from error
    return str(reply["Parameter"]["Value"])


def _unless_there(api: Api, operation: str, request: dict[str, object], duplicate: str) -> None:
    try:
        api.call(operation, request)
    except ApiError as error:
        if error.code != duplicate:
            raise error.sorted from error
