"""What launches need beside instances: key pair, security group, launch template. Made once, found by tag."""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from cloud.aws.api import Api, ApiError
from cloud.aws.bootstrap import HostKey, new_host_key, user_data
from cloud.aws.errors import Verdict
from cloud.aws.requests import (
    GROUP_NAME,
    SHARED_TAG,
    Owner,
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


@dataclass(frozen=True)
class LaunchRecord:
    """What must survive a crash of the launcher: who we are in the cloud, and the host key of our nodes."""

    job: str
    launch: str
    region: str
    host_key: HostKey

    @property
    def owner(self) -> Owner:
        """For tags."""
        return Owner(self.job, self.launch)

    @classmethod
    def at(cls, folder: Path, job: str, region: str) -> LaunchRecord:
        """The record in the job's folder, or a new one, which is then on the disk."""
        path = folder / "launch.json"
        if path.exists():
            return cls.read(path)
        record = cls(job, secrets.token_hex(10), region, new_host_key())
        write_private(path, json.dumps(asdict(record)))
        return record

    @classmethod
    def read(cls, path: Path) -> LaunchRecord:
        """A record as it was written."""
        fields = json.loads(path.read_text())
        return cls(fields["job"], fields["launch"], fields["region"], HostKey(**fields["host_key"]))


def mark_ended(folder: Path) -> None:
    """The API has said that nothing of this launch is left: whoever sweeps later need not ask again."""
    if folder.is_dir():
        write_private(folder / "ended", "")


def mark_begun(folder: Path) -> None:
    """From now on something of this launch may live (again)."""
    (folder / "ended").unlink(missing_ok=True)


def has_ended(folder: Path) -> bool:
    """Whether a launch was seen to its end, or never began."""
    return (folder / "ended").exists() or not (folder / "launch.json").exists()


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
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": f"tag:{SHARED_TAG}", "Values": ["nodes"]}]
    found = api.pages("describe_security_groups", {"Filters": filters}, "SecurityGroups")
    if found:
        group = str(found[0]["GroupId"])
    else:
        _unless_there(api, "create_security_group", group_request(vpc), "InvalidGroup.Duplicate")
        named = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": [GROUP_NAME]}]
        group = str(api.pages("describe_security_groups", {"Filters": named}, "SecurityGroups")[0]["GroupId"])
    for rule in group_rules_requests(group, settings):
        _unless_there(api, "authorize_security_group_ingress", rule, "InvalidPermission.Duplicate")
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


def remove_launch(api: Api, owner: Owner, placement_group: bool) -> None:
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
