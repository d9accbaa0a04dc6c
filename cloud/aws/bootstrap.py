"""What a new instance is told at its birth: cloud-init user data with host key and bootstrap script."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from cloud.aws.settings import AwsSettings

SCRIPT = "/opt/parcae/bootstrap.sh"
MAX_USER_DATA_BYTES = 16384
READY = ".parcae-ready"
FAILED = ".parcae-failed"
LEASE = ".parcae-lease"
LOG = ".parcae-bootstrap.log"


@dataclass(frozen=True)
class HostKey:
    """An Ed25519 host key, both halves as OpenSSH text."""

    private: str
    public: str


def new_host_key() -> HostKey:
    """A fresh key: known to us before the machine that will show it exists."""
    import asyncssh

    key = asyncssh.generate_private_key("ssh-ed25519", comment="parcae")
    return HostKey(key.export_private_key().decode(), key.export_public_key().decode())


def bootstrap_script(settings: AwsSettings, longest_s: float = 0.0) -> str:
    """The script of the template with its places filled; `longest_s` 0: as long as there is a lease."""
    values = {
        "HOME": f"/home/{settings.user}",
        "PYTHON": settings.python,
        "PACKAGES": shlex.join(settings.packages),
        "LONGEST_S": f"{longest_s:.0f}",
        "DEAD_MAN_S": f"{settings.times.dead_man_s:.0f}",
        "DEAD_MAN_CHECK_S": f"{min(60.0, settings.times.dead_man_s / 4):g}",
    }
    script = settings.bootstrap
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script


def user_data(settings: AwsSettings, host_key: HostKey, longest_s: float = 0.0) -> str:
    """Cloud-config (JSON is YAML): our host key instead of a generated one, the script, and its run.

    Raises:
        ValueError: it is longer than EC2 takes (16 KiB).
    """
    config = {
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
        "ssh_genkeytypes": [],
        "disable_root": True,
        "ssh_pwauth": False,
        "write_files": [
            {"path": SCRIPT, "permissions": "0755", "content": bootstrap_script(settings, longest_s)}
        ],
        "runcmd": [[SCRIPT]],
    }
    text = "#cloud-config\n" + json.dumps(config, indent=1)
    if len(text.encode()) > MAX_USER_DATA_BYTES:
        raise ValueError(f"the user data has {len(text.encode())} bytes; EC2 takes {MAX_USER_DATA_BYTES}")
    return text
