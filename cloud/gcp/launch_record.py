"""What a launch keeps on the disk: who it is in the cloud, its keys, and every request before it is sent."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.gcp.requests import Owner
from cloud.private_file import write_private


@dataclass(frozen=True)
class KeyPair:
    """An Ed25519 key, both halves as OpenSSH text."""

    private: str
    public: str

    @classmethod
    def new(cls) -> KeyPair:
        """A fresh one."""
        import asyncssh

        key = asyncssh.generate_private_key("ssh-ed25519", comment="parcae")
        return cls(key.export_private_key().decode(), key.export_public_key().decode().strip())


@dataclass(frozen=True)
class LaunchRecord:
    """One launch: its owner's labels, where it rents, our key and the key that its nodes show.

    `gpu` is what was chosen: a launch that is gone on with rents no other, whatever the market says by then.
    """

    folder: Path
    job: str
    launch: str
    project: str
    region: str
    client_key: KeyPair
    host_key: KeyPair
    gpu: str = ""

    @property
    def owner(self) -> Owner:
        """For labels."""
        return Owner(self.job, self.launch)

    @classmethod
    def at(cls, folder: Path, job: str, project: str, region: str, gpu: str = "") -> LaunchRecord:
        """The record in the folder, or a new one, which is then on the disk."""
        if (folder / "launch.json").exists():
            return cls.read(folder)
        launch = secrets.token_hex(10)
        record = cls(folder, job, launch, project, region, KeyPair.new(), KeyPair.new(), gpu)
        fields = {
            "job": job,
            "launch": record.launch,
            "project": project,
            "region": region,
            "client_key": vars(record.client_key),
            "host_key": vars(record.host_key),
            "gpu": gpu,
        }
        write_private(folder / "launch.json", json.dumps(fields))
        return record

    @classmethod
    def read(cls, folder: Path) -> LaunchRecord:
        """A record as it was written."""
        fields = json.loads((folder / "launch.json").read_text())
        return cls(
            folder,
            fields["job"],
            fields["launch"],
            fields["project"],
            fields["region"],
            KeyPair(**fields["client_key"]),
            KeyPair(**fields["host_key"]),
            fields.get("gpu", ""),
        )

    # --- requests

    def sending(self, request: Mapping[str, Any]) -> None:
        """This is about to be sent: whoever cleans up after us can send it again, under the same id."""
        write_private(self._path(request), json.dumps({"request": dict(request)}))

    def accepted(self, request: Mapping[str, Any], operation: str) -> None:
        """It has become this operation."""
        write_private(self._path(request), json.dumps({"request": dict(request), "operation": operation}))

    def done(self, request: Mapping[str, Any]) -> None:
        """What it brought is known: the sweep by label finds it."""
        self._path(request).unlink(missing_ok=True)

    def open_requests(self) -> list[dict[str, Any]]:
        """The requests that may have been sent and of which nobody knows the outcome."""
        return [json.loads(path.read_text())["request"] for path in self._requests.glob("*.json")]

    @property
    def _requests(self) -> Path:
        return self.folder / "requests"

    def _path(self, request: Mapping[str, Any]) -> Path:
        return self._requests / f"{request['request_id']}.json"
