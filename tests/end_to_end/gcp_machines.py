"""Machines for the Compute Engine stand-in: every instance is a local node, born by its startup script."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncssh

from cloud.gcp.api import ENDPOINT
from cloud.local.node import LocalNode
from cloud.processes import wait_until_gone
from cloud.types import Instance, InstanceState, Pool
from parcae_cli.catalogue import load_fleet
from tests.cloud.gcp.fake_compute import MACHINE_TYPE, FakeCompute
from tests.cloud.gcp.metadata_server import GceMetadata

_SCRIPT_TIMEOUT_S = 20.0


def gcp_fleet(**changes: Any) -> dict[str, Any]:
    """The shipped settings, with this Python, and times that suit a test."""
    times = {
        "retry_s": 0.2, "grace_s": 3, "describe_s": 0.3, "notice_poll_s": 0.2, "cool_down_s": 1, "boot_s": 60,
        "lease_s": 20, "close_s": 10,
    }  # fmt: skip
    shared = {"device": "model", "python": sys.executable, "packages": [], "times": times}
    return {**load_fleet("gcp"), "machine_types": [MACHINE_TYPE], **shared, **changes}


class LaunchGate:
    """Holds the answer to the first bulkInsert (`after`: when its instances are there) until it is opened."""

    def __init__(self, fake: FakeCompute, after: bool = True) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        if after:
            launch = fake.on_launch
            fake.on_launch = lambda shown: (launch(shown), self._hold())[1]
        else:
            fake.hold = lambda method: self._hold() if method.endswith("bulkInsert") else None

    def _hold(self) -> None:
        if not self.entered.is_set():
            self.entered.set()
            self.open.wait(20)


class GcpMachines:
    """A thread with a loop that runs the nodes' SSH servers, and a metadata server for each.

    The startup script really runs, with folders of the node's in place of the system's, and the node shows
    the host key that the script has installed. Its SSH port is in its metadata, as for an unusual image.
    """

    def __init__(self, compute: FakeCompute, root: Path) -> None:
        self._compute, self._root = compute, root
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.zygote: Path | None = None  # None: workers run from the sources that were pushed to the node
        self.nodes: dict[str, LocalNode] = {}
        self.anchors: list[str] = []  # those that may act as a service account
        self.break_bootstrap = False
        self._switches: dict[str, int] = {}  # the process group that a startup script has left running
        self.metadata: dict[str, GceMetadata] = {}
        compute.on_launch, compute.on_end = self._launch, self._end

    def _launch(self, shown: dict[str, Any]) -> None:
        name = shown["name"]
        items = {item["key"]: item["value"] for item in shown["metadata"]["items"]}
        folder = self._root / name
        folder.mkdir(parents=True)
        zone = "/".join(shown["zone"].split("/")[-4:])  # projects/PROJECT/zones/ZONE
        metadata = GceMetadata({"instance/name": name, "instance/zone": zone})
        environment = {
            "OMP_NUM_THREADS": "1",
            "GCE_METADATA_HOST": metadata.host,
            "PARCAE_STATE": str(folder / "state"),
            "PARCAE_SSH_FOLDER": str(folder / "ssh"),
            "PARCAE_RESTART_SSH": "true",
            "PARCAE_LOGIND_FOLDER": str(folder / "logind"),
        }
        if self.zygote is not None:
            environment["PARCAE_ZYGOTE"] = str(self.zygote)
        if shown["serviceAccounts"]:  # whose credentials the metadata server would tell
            self.anchors.append(name)
            environment |= {key: os.environ[key] for key in (ENDPOINT, "GOOGLE_CLOUD_PROJECT")}
            metadata.set("instance/service-accounts/default/token", '{"access_token": "a-token"}')
        text = items["startup-script"].replace("shutdown -h now", "true").replace("nohup setsid", "nohup")
        if self.break_bootstrap:
            text = text.replace('touch "$STATE/ready"', "echo the disk is on fire; false")
        script = subprocess.Popen(
            ["/bin/sh", "-c", text],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", **environment},
            start_new_session=True,
        )
        self._switches[name] = script.pid
        assert script.wait(_SCRIPT_TIMEOUT_S) == int(self.break_bootstrap), (folder / "state/log").read_text()
        pool = Pool("zone", "machine", 1, 0.0, 0.0)
        node = LocalNode(
            Instance(shown["id"], name, "", "", pool, InstanceState.RUNNING, time.time()),
            folder,
            self._root / f"{name}.log",
            asyncssh.import_public_key(items["ssh-keys"].split(":", 1)[1]),
            host_key=asyncssh.read_private_key(folder / "ssh/ssh_host_ed25519_key"),
        )
        self.nodes[name], self.metadata[name] = node, metadata
        asyncio.run_coroutine_threadsafe(node.start(environment), self._loop).result(20)
        assert node._server is not None
        (port,) = [item for item in shown["metadata"]["items"] if item["key"] == "ssh-port"]
        port["value"] = str(node._server.get_port())

    def _end(self, shown: dict[str, Any]) -> None:
        node = self.nodes.get(shown["name"])
        if node is not None and node.alive:
            self._switch_off(shown["name"])
            self._call(node.kill)
            threading.Thread(target=self.metadata[shown["name"]].close, daemon=True).start()

    def notice(self, name: str, left_s: float) -> None:
        """The metadata server says that the machine is preempted, and it is gone `left_s` later."""
        self.metadata[name].set("instance/preempted", "TRUE")
        timer = threading.Timer(left_s, self._compute.preempt, [name])
        timer.daemon = True
        timer.start()

    def vanish(self, name: str) -> None:
        """Compute Engine takes the instance back without a word."""
        self._compute.preempt(name)

    def deafen(self, name: str) -> None:
        """Its SSH server is gone; what runs there goes on."""
        self._call(lambda: (self.nodes[name]._server.close(), self.nodes[name].cut()))

    def _switch_off(self, name: str) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._switches[name], signal.SIGKILL)

    def pids(self, name: str, role: str) -> list[int]:
        """Every process of this role that a node has ever had."""
        return [record.pid for record in self.nodes[name].register.records() if record.role == role]

    def _call(self, action: Any) -> None:
        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def close(self) -> list[int]:
        """Switch everything off; the processes that were still there before though their node had ended."""
        left = []
        for node in self.nodes.values():
            records = node.register.records()
            self._switch_off(node.instance.name)
            if node.alive:
                self._call(node.kill)
                wait_until_gone(records, 2.0)
            else:
                left += [record.pid for record in wait_until_gone(records, 2.0)]
            shutil.rmtree(node.folder, ignore_errors=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        return left
