"""The local cloud: this machine's processes rented out as spot instances, with a trace as its weather."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import asyncssh

from cloud.local.node import LocalNode, node_environment, remove_folder
from cloud.local.schedule import Schedule, ScheduleEvent
from cloud.processes import ProcessRecord, Register, adopt_orphans, is_alive, reap, wait_until_gone
from cloud.provider import CloudError, MaybeStillRunningError
from cloud.types import Instance, InstanceState, LaunchReply, Pool, SshTarget

POOL = Pool(zone="local", instance_type="process", gpus=1, spot_usd_per_hour=0.0, on_demand_usd_per_hour=0.0)

# Many workers share few cores: one thread each, or they get in each other's way.
_SINGLE_THREADED = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
_GONE_WITHIN_S = 4.0
_ENDED = (InstanceState.TERMINATING, InstanceState.TERMINATED)


class LocalProvider:
    """A SpotProvider over this machine.

    `root` is the job's folder: nodes work in `root/nodes/NAME` and log to `root/logs/NAME.log`. Trace time
    is wall time times `speed` and stands still at 0 until `start_clock`. A removal becomes a notice at its
    own time and a kill `notice_s` (trace seconds) later; with `notice_s` 0 and for a `kill` event there is
    no warning.
    """

    def __init__(
        self,
        job: str,
        root: Path,
        schedule: Schedule,
        *,
        speed: float = 1.0,
        notice_s: float = 120.0,
        pool: Pool = POOL,
        zygote: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._job = job
        self._root = root
        self._schedule = schedule
        self._speed = speed
        self._notice_s = notice_s
        self._pool = pool
        self._with_zygote = zygote
        self._environment = {**_SINGLE_THREADED, **_import_path(), **(environment or {})}
        self._nodes: dict[str, LocalNode] = {}
        self._ended: list[Instance] = []
        self._replies: dict[str, LaunchReply] = {}
        self._present: dict[str, None] = {}  # in order of appearance: the trace's instances that exist now
        self._timers: set[asyncio.TimerHandle] = set()
        self._capacity = asyncio.Event()
        self._client_key: asyncssh.SSHKey | None = None
        self._zygote: asyncio.subprocess.Process | None = None
        self._clock_started = False
        self._closed = False
        self._launches = 0

    @property
    def name(self) -> str:
        """`local`."""
        return "local"

    async def start(self) -> None:
        """Make the client key, let the instances of time 0 exist, and preload the workers' modules."""
        (self._root / "nodes").mkdir(parents=True, exist_ok=True)
        (self._root / "logs").mkdir(parents=True, exist_ok=True)
        adopt_orphans()
        self._client_key = asyncssh.generate_private_key("ssh-ed25519")
        for event in self._schedule.events:
            if event.time_s <= 0:
                self._happen(event)
        if self._with_zygote:
            await self._start_zygote()

    def start_clock(self) -> None:
        """Let trace time run from now. Calling it again changes nothing."""
        if self._clock_started:
            return
        self._clock_started = True
        (self._root / "clock").write_text(repr(time.time()))
        for event in self._schedule.events:
            if event.time_s > 0:
                self.later(event.time_s / self._speed, partial(self._happen, event))

    async def recover(self, held: Sequence[Instance], tokens: Sequence[str]) -> None:
        """Be the machine again for nodes whose agents live; the trace's time has gone on meanwhile."""
        assert self._client_key is not None
        numbers = [path.name.rpartition(".")[2] for path in (self._root / "nodes").iterdir()]
        self._launches = max((int(number) for number in numbers if number.isdigit()), default=0)
        for instance in held:
            folder = self._root / "nodes" / f"{instance.name}.{instance.id.rpartition('-')[2]}"
            node = LocalNode(instance, folder, self._root / "logs" / f"{instance.name}.log", self._client_key)
            roles = {record.role for record in node.register.records() if is_alive(record)}
            if "agent" not in roles or instance.state in _ENDED:
                node.register.kill()
                self._ended.append(replace(instance, state=InstanceState.TERMINATED))
                continue
            self._nodes[instance.name] = node
            await self._boot(node)
        clock = self._root / "clock"
        if clock.exists():
            self._resume_clock(float(clock.read_text()))

    def _resume_clock(self, started_s: float) -> None:
        """Trace time went on: what has happened since is made up for, the rest comes in its time."""
        self._clock_started = True
        now_s = max(0.0, time.time() - started_s) * self._speed
        for event in (event for event in self._schedule.events if event.time_s > 0):
            if event.time_s > now_s:
                self.later((event.time_s - now_s) / self._speed, partial(self._happen, event))
                continue
            left_s = 0.0 if event.action == "kill" else event.time_s + self._notice_s - now_s
            if event.action == "add":
                self.appear(event.name)
                continue
            self._present.pop(event.name, None)
            node = self._nodes.get(event.name)
            if node is None or node.instance.launched_s > started_s + event.time_s / self._speed:
                continue  # what the trace took then was another instance of that name
            if left_s > 0:
                self.announce(event.name, left_s / self._speed)
            else:
                self.kill(event.name)

    async def request(self, count: int, token: str) -> LaunchReply:
        """Rent up to `count` instances that exist and that the job does not hold, in the trace's order."""
        if self._client_key is None or self._closed:
            state = "closed" if self._closed else "not started; call start() first"
            raise CloudError(f"local request: the provider is {state}")
        if token in self._replies:
            return self._replies[token]
        names = [name for name in self._present if name not in self._nodes][:count]
        nodes = [self._make(name, token) for name in names]
        why = "" if len(nodes) == count else f"the trace has {len(self._present)} instances now, all taken"
        reply = LaunchReply(tuple(node.instance for node in nodes), count - len(nodes), why)
        self._replies[token] = reply
        await asyncio.gather(*(self._boot(node) for node in nodes))
        booted = tuple(self._find(instance) for instance in reply.instances)
        self._replies[token] = LaunchReply(booted, reply.refused, reply.why)
        return self._replies[token]

    async def wait_for_capacity(self, timeout_s: float) -> None:
        """Return when the trace has an instance that the job does not hold."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while all(name in self._nodes for name in self._present):
                    self._capacity.clear()
                    await self._capacity.wait()

    async def describe(self) -> Sequence[Instance]:
        """Every instance of the job, ended ones first."""
        return [*self._ended, *(node.instance for node in self._nodes.values())]

    async def terminate(self, names: Sequence[str]) -> None:
        """End these instances at once; without a trace there is another for each."""
        for name in names:
            known = name in self._nodes
            self.kill(name)
            if known and self._schedule.replaces:
                self.appear(self._unused_name())

    def _unused_name(self) -> str:
        """A name that no instance of the job ever had."""
        numbers = itertools.count(len(self._schedule.events) + 1)
        names = (f"node{number}" for number in numbers)
        logs = self._root / "logs"
        return next(n for n in names if n not in self._present and not (logs / f"{n}.log").exists())

    def ssh_target(self, instance: Instance) -> SshTarget:
        """Where the instance's SSH server is.

        Raises:
            CloudError: the instance has ended.
        """
        node = self._nodes.get(instance.name)
        if node is None or node.instance.id != instance.id:
            raise CloudError(f"local ssh_target: instance {instance.name} has ended")
        return node.ssh_target()

    async def close(self) -> None:
        """End every node and the zygote, wait until their processes are gone, and remove their folders.

        Raises:
            MaybeStillRunningError: a process did not go away in time.
        """
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        registers = [Register(path) for path in (self._root / "nodes").glob("*/pgids")]
        for name in list(self._nodes):
            self.kill(name)
        if self._zygote is not None and self._zygote.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._zygote.kill()
            await self._zygote.wait()
        records: list[ProcessRecord] = [record for register in registers for record in register.kill()]
        left = await asyncio.to_thread(wait_until_gone, records, _GONE_WITHIN_S)
        # Daemons only: those that we started ourselves are waited for where they were started.
        reap(record for record in records if record.role in ("agent", "start", "worker"))
        if left:
            numbers = ", ".join(str(record.pid) for record in left)
            raise MaybeStillRunningError(
                f"local close: processes {numbers} do not end; look at them with ps, then run `parcae down`"
            )
        for register in registers:
            remove_folder(register.path.parent)
        shutil.rmtree(self._root / "nodes", ignore_errors=True)

    def kill(self, name: str) -> None:
        """The instance is gone this very moment, without a warning. Unknown names are no error."""
        node = self._nodes.pop(name, None)
        if node is None:
            return
        node.kill()
        self._ended.append(node.instance.moved(InstanceState.TERMINATED))
        if name in self._present:  # ended by us or by a fault: the trace's instance is used up
            del self._present[name]

    def names(self) -> list[str]:
        """The names of the living nodes."""
        return list(self._nodes)

    @property
    def present(self) -> list[str]:
        """The names of the instances that exist, rented or not."""
        return list(self._present)

    def node(self, name: str) -> LocalNode:
        """The living node of that name.

        Raises:
            KeyError: there is none.
        """
        return self._nodes[name]

    def announce(self, name: str, notice_s: float) -> None:
        """Give a living instance a notice and end it `notice_s` wall seconds from now."""
        node = self._nodes[name]
        node.metadata.interrupt(time.time() + notice_s)
        if node.instance.state is InstanceState.RUNNING:
            node.instance = node.instance.moved(InstanceState.NOTICED)
        self.later(notice_s, lambda: self._deadline(node))

    def take(self, name: str, notice_s: float) -> None:
        """As `announce`, and the instance is not to be had again."""
        self._present.pop(name, None)
        self.announce(name, notice_s)

    def _deadline(self, node: LocalNode) -> None:
        if self._nodes.get(node.instance.name) is not node:
            return
        reappeared = node.instance.name in self._present
        self.kill(node.instance.name)
        if reappeared:  # the trace brought the same name back during the notice
            self.appear(node.instance.name)

    def _happen(self, event: ScheduleEvent) -> None:
        if event.action == "add":
            self.appear(event.name)
            return
        self._present.pop(event.name, None)
        if event.name not in self._nodes:
            return
        notice_s = self._notice_s / self._speed
        if event.action == "kill" or notice_s <= 0:
            self.kill(event.name)
        else:
            self.announce(event.name, notice_s)

    def appear(self, name: str) -> None:
        """From now on this instance exists and can be rented."""
        self._present[name] = None
        self._capacity.set()

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do something `delay_s` wall seconds from now, unless the provider is closed before."""

        def run() -> None:
            self._timers.discard(handle)
            action()

        handle = asyncio.get_running_loop().call_later(delay_s, run)
        self._timers.add(handle)

    def _make(self, name: str, token: str) -> LocalNode:
        assert self._client_key is not None
        self._launches += 1
        instance = Instance(
            id=f"local-{os.getpid()}-{self._launches}",
            name=name,
            job=self._job,
            token=token,
            pool=self._pool,
            state=InstanceState.BOOTING,
            launched_s=time.time(),
        )
        folder = self._root / "nodes" / f"{name}.{self._launches}"
        node = LocalNode(instance, folder, self._root / "logs" / f"{name}.log", self._client_key)
        self._nodes[name] = node
        return node

    async def _boot(self, node: LocalNode) -> None:
        await node.start(self._environment)
        if self._nodes.get(node.instance.name) is node and node.instance.state is InstanceState.BOOTING:
            node.instance = node.instance.moved(InstanceState.RUNNING)

    def _find(self, instance: Instance) -> Instance:
        node = self._nodes.get(instance.name)
        if node is not None and node.instance.id == instance.id:
            return node.instance
        return next(ended for ended in self._ended if ended.id == instance.id)

    async def _start_zygote(self) -> None:
        folder = self._root / "nodes" / "zygote"
        folder.mkdir(parents=True, exist_ok=True)
        register = folder / "pgids"
        register.touch()
        path = folder / "socket"  # named from inside the folder: a socket's path has at most 107 bytes
        with (self._root / "logs" / "zygote.log").open("ab") as log:
            self._zygote = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "parcae_cli.zygote",
                "--socket",
                path.name,
                "--lifeline-fd",
                "0",
                cwd=folder,
                env={
                    **node_environment(),
                    **self._environment,
                    "HOME": str(folder),
                    "PARCAE_REGISTER": str(register),
                },
                start_new_session=True,
                stdin=asyncio.subprocess.PIPE,  # its other end closes with this process, however that ends
                stdout=log,
                stderr=log,
            )
        self._environment |= dict.fromkeys(("PARCAE_ZYGOTE", "PARCAE_AGENT_ZYGOTE"), str(path))


def _import_path() -> dict[str, str]:
    """How nodes find these packages when they are run from a checkout that is not installed."""
    home = str(Path(__file__).resolve().parents[2])
    installed = any("site-packages" in part for part in Path(home).parts)
    return {} if installed else {"PYTHONPATH": home}
