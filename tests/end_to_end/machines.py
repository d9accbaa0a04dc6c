"""Machines for the EC2 stand-in: every instance that it launches is a local node, born by its user data."""

from __future__ import annotations

import asyncio
import atexit
import base64
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import asyncssh

from cloud.aws.bootstrap import SCRIPT
from cloud.local.node import LocalNode, node_environment
from cloud.processes import wait_until_gone
from cloud.types import Instance, InstanceState, Pool
from tests.cloud.aws.front import ENVIRONMENT, Front
from tests.end_to_end.sshd import free_port

PROJECT = Path(__file__).resolve().parents[2]


@functools.cache
def zygote() -> Path:
    """One for all tests of this process, whose end ends it: workers need not import torch each."""
    folder = Path(tempfile.mkdtemp(prefix="parcae-zygote-"))
    command = [sys.executable, "-P", "-m", "parcae_cli.zygote", "--socket", "socket", "--lifeline-fd", "0"]
    register = folder / "pgids"
    register.touch()
    environment = {**node_environment(), "PYTHONPATH": str(PROJECT), "HOME": str(folder)}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "PARCAE_REGISTER": str(register)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end() -> None:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    return folder / "socket"


class Machines:
    """A thread with a loop that runs the nodes' SSH servers and metadata services.

    Each has its own address of the loopback network, which the API shows as public and private; all have
    the same SSH port. The bootstrap script really runs, with the node's folder as home and no `shutdown`.
    """

    def __init__(self, front: Front, root: Path) -> None:
        self._front, self._root = front, root
        self.zygote: Path | None = None  # None: workers run from the sources that were pushed to the node
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.nodes: dict[str, LocalNode] = {}
        self.anchors: list[str] = []  # those that have an instance profile
        self.shut_down = root / "shut-down"
        self._count = 0
        self.ssh_port = free_port("127.77.0.1")
        self.break_bootstrap = False
        front.on_launch, front.on_end = self._launch, self._end

    def _profiles(self) -> Any:
        return self._front.backend.iam_instance_profile_associations

    def _launch(self, instance: Any) -> None:
        self._count += 1
        address = f"127.77.0.{self._count}"
        nic = instance.nics[0]
        nic.private_ip_address = nic.public_ip = address
        pool = Pool(instance.placement or "us-east-1a", instance.instance_type, 1, 0.0, 0.0)
        mine = Instance(instance.id, instance.id, "", "", pool, InstanceState.RUNNING, time.time())
        config = json.loads(_text(instance.user_data).removeprefix("#cloud-config\n"))
        public = instance.ec2_backend.key_pairs[instance.key_name].material_public
        node = LocalNode(
            mine,
            self._root / instance.id,
            self._root / f"{instance.id}.log",
            asyncssh.import_public_key(_text(public)),
            host=address,
            port=self.ssh_port,
            host_key=asyncssh.import_private_key(config["ssh_keys"]["ed25519_private"]),
        )
        self.nodes[instance.id] = node
        if instance.id in {one.instance.id for one in self._profiles().values()}:
            self.anchors.append(instance.id)
        (script,) = [item["content"] for item in config["write_files"] if item["path"] == SCRIPT]
        asyncio.run_coroutine_threadsafe(self._boot(node, script), self._loop).result(20)

    async def _boot(self, node: LocalNode, script: str) -> None:
        preloaded = {} if self.zygote is None else {"PARCAE_ZYGOTE": str(self.zygote)}
        if node.instance.id in self.anchors:  # in the place of the role that its metadata service would tell
            preloaded |= {name: os.environ[name] for name in (*ENVIRONMENT, "AWS_ENDPOINT_URL")}
        await node.start({"OMP_NUM_THREADS": "1", **preloaded})
        script = script.replace("/home/ubuntu", str(node.folder))
        script = script.replace("shutdown -h now", f"touch {self.shut_down}").replace("nohup setsid", "nohup")
        if self.break_bootstrap:
            script = script.replace(
                "set -eu", "set -eu\necho the disk is on fire >> $PWD/.parcae-bootstrap.log", 1
            )
            script += "\nfalse\n"
            script = script.replace('touch "$HOME_FOLDER/.parcae-ready"', "false")
        process = subprocess.Popen(  # noqa: ASYNC220 - it only forks
            ["/bin/sh", "-c", script], cwd=node.folder, env=node._environment, start_new_session=True
        )
        node.register.enter("command", process.pid)
        threading.Thread(target=process.wait, daemon=True).start()

    def _end(self, instance: Any) -> None:
        node = self.nodes.get(instance.id)
        if node is not None and node.alive:
            self._call(node.kill)

    def vanish(self, name: str) -> None:
        """EC2 takes the instance back without a word."""
        self._front.interrupt(name)

    def notice(self, name: str, left_s: float) -> None:
        """The metadata service announces the end, and it comes."""
        self._call(lambda: self.nodes[name].metadata.interrupt(time.time() + left_s))
        timer = threading.Timer(left_s, self.vanish, [name])
        timer.daemon = True
        timer.start()

    def deafen(self, name: str) -> None:
        """Its SSH server is gone; what runs there goes on."""
        self._call(lambda: (self.nodes[name]._server.close(), self.nodes[name].cut()))

    def pids(self, name: str, role: str) -> list[int]:
        """Every process of this role that a node has ever had."""
        return [record.pid for record in self.nodes[name].register.records() if record.role == role]

    def _call(self, action: Any) -> None:
        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def close(self) -> list[int]:
        """Switch everything off; the processes that were still there before."""
        left = []
        for node in self.nodes.values():
            records = node.register.records()
            left += [record.pid for record in wait_until_gone(records, 2.0)] if not node.alive else []
            if node.alive:
                self._call(node.kill)
            wait_until_gone(records, 2.0)
            shutil.rmtree(node.folder, ignore_errors=True)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        return left


def _text(value: Any) -> str:
    text = value.decode() if isinstance(value, bytes) else str(value)
    if text.startswith(("#cloud-config", "ssh-")):
        return text
    return base64.b64decode(text).decode()
