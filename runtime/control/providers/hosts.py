"""Machines that one already has: `--cloud hosts --hosts hosts.toml`."""

from __future__ import annotations

import asyncio
import functools
import json
import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import asyncssh

from cloud.hosts.inventory import Host, InventoryError, read_inventory
from cloud.hosts.provider import HostRefusesError, HostsProvider, HostTimes, run_of
from cloud.provider import CloudError
from cloud.types import Instance
from runtime.control.fleet import ssh
from runtime.control.fleet.deploy import push_sources
from runtime.control.fleet.node_link import LinkTimes
from runtime.control.job.job import LaunchRequest
from runtime.control.job.journal import JobRecord, Journal
from runtime.control.node import probe
from runtime.control.providers import ProviderSetup
from runtime.planning.errors import InputError
from runtime.planning.model import ModelSpec

LINK_TIMES = LinkTimes(boot_s=45.0, agent_start_s=60.0, lease_s=30.0, poll_s=1.0, close_s=12.0)
HOST_TIMES = HostTimes(knock_s=2.0, lease_s=LINK_TIMES.lease_s)
_OLDEST_PYTHON = (3, 11)
_PROBE_TIMEOUT_S = 30.0
_CLEAR_TIMEOUT_S = 7.0
_KNOCK_TIMEOUT_S = 4.0


def setup(request: LaunchRequest, spec: ModelSpec, journal: Journal) -> ProviderSetup:
    """The hosts of the file that the request names.

    Raises:
        InputError: the file is wrong.
    """
    try:
        hosts = read_inventory(Path(request.fleet["hosts"]))
    except InventoryError as error:
        raise InputError(str(error)) from error
    left = journal.instances(request.name, live_only=True)  # of a launcher that was killed: the run goes on
    run = run_of(left[0].instance) if left else secrets.token_hex(4)
    before = frozenset(row.instance.name for row in left)
    nodes = HostNodes(request.name, run, hosts, journal.job_folder(request.name) / "logs", before)
    return ProviderSetup(
        HostsProvider(request.name, run, hosts, nodes, HOST_TIMES),
        link_times=LINK_TIMES,
        anchor_reachable=False,
        agent_start=nodes,
        wanted=min(request.nodes, len(hosts)),
        gpus=gpus_of(hosts, request.gpus_per_node),
    )


def gpus_of(hosts: Sequence[Host], asked: int | None) -> int:
    """How many GPUs of every host are used: as many as asked for, or as all of them have.

    Raises:
        InputError: some host has fewer, or they differ and nobody said how many.
    """
    least = min(hosts, key=lambda host: host.gpus or 1)
    if asked is None:
        if len({host.gpus or 1 for host in hosts}) > 1:
            raise InputError(
                f"the hosts have different numbers of GPUs ({least.name} has {least.gpus or 1}), but a job "
                f"uses as many of each; give --gpus-per-node {least.gpus or 1}"
            )
        return least.gpus or 1
    for host in hosts:
        if host.gpus is not None and host.gpus < asked:
            raise InputError(f"--gpus-per-node {asked}: host {host.name} has {host.gpus} in its file")
    return asked


def sweep_job(journal: Journal, record: JobRecord) -> tuple[list[str], list[str]]:
    """End what a job has left on its hosts: what ended, and what may still run, in words.

    Raises:
        InputError: the file of hosts is not what it was.
    """
    instances = [row.instance for row in journal.instances(record.name, live_only=True)]
    if not instances:
        return [], []
    logs = journal.job_folder(record.name) / "logs"
    cleared, unclear = sweep(record.name, Path(record.spec["fleet"]["hosts"]), instances, logs)
    return [f"what ran on {name}" for name in cleared], list(unclear)


def sweep(
    job: str, hosts: Path, instances: Sequence[Instance], logs: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """End what a job whose launcher was killed has left on its hosts: the hosts that are clear now, and those
    of which that cannot be said, with the reason.

    Raises:
        InputError: the file of hosts is not what it was.
    """
    try:
        known = {host.name: host for host in read_inventory(hosts)}
    except InventoryError as error:
        raise InputError(str(error)) from error

    async def clear(instance: Instance) -> str:
        if instance.name not in known:
            return f"host {instance.name}: {hosts} does not name it any more"
        nodes = HostNodes(job, run_of(instance), tuple(known.values()), logs)
        try:
            await nodes.clear_leftovers(known[instance.name], instance)
        except CloudError as error:
            return f"host {instance.name}: {error}"
        return ""

    async def clear_all() -> list[str]:
        return await asyncio.gather(*map(clear, instances))

    doubts = dict(zip((instance.name for instance in instances), asyncio.run(clear_all()), strict=True))
    cleared = tuple(name for name, doubt in doubts.items() if not doubt)
    return cleared, tuple(doubt for doubt in doubts.values() if doubt)


class HostNodes:
    """What we do on hosts: log in, bring our sources, start agents, and leave nothing behind.

    It is the provider's HostAccess, and the fleet's AgentStart. Work folders carry a number of this run's, so
    that jobs of one name, launched from two machines, stay apart; all of a run's agents on one host share
    one, so that a new agent finds and ends what an old one left.
    """

    def __init__(
        self,
        job: str,
        run: str,
        hosts: tuple[Host, ...],
        logs: Path,
        before: frozenset[str] = frozenset(),
    ) -> None:
        """`before`: the hosts on which another process of this run has started agents."""
        self._hosts: Mapping[str, Host] = {host.name: host for host in hosts}
        self._logs = logs
        self._prefix, self._before = f"{job}.{run}", before
        self._words: dict[str, str] = {}  # by host: what starts Python in its work folder

    async def knock(self, host: Host) -> None:
        """Log in and out again."""
        (await self._connect(host)).close()

    async def clear(self, host: Host, instance: Instance) -> None:
        """End what runs in the host's work folder, keep its log, and remove the folder."""
        if host.name not in self._words and host.name in self._before:
            await self.clear_leftovers(host, instance)
        elif host.name in self._words:  # else no agent was ever started there
            connection = await self._connect(host)
            try:
                await self._clear(connection, host)
            finally:
                connection.close()

    async def clear_leftovers(self, host: Host, instance: Instance) -> None:
        """The same, when it was another process that started the agent.

        Raises:
            CloudError: as for `clear`.
        """
        connection = await self._connect(host)
        try:
            await self(connection, instance)
            await self._clear(connection, host)
        except ssh.SshError as error:
            raise CloudError(str(error)) from error
        finally:
            connection.close()

    async def _clear(self, connection: asyncssh.SSHClientConnection, host: Host) -> None:
        try:
            command = f"exec {self._words[host.name]} -P -m parcae_cli.agent --end"
            reply = await ssh.run(connection, command, _CLEAR_TIMEOUT_S)
        except ssh.SshError as error:
            raise CloudError(str(error)) from error
        try:
            words = json.loads(reply.output)
            left = [str(pid) for pid in words["left"]]
            await asyncio.to_thread(self._keep_log, host.name, str(words["log"]))
        except (ValueError, KeyError, TypeError) as error:
            said = (reply.error or reply.output).strip()[-300:]
            raise CloudError(f"the end of its agent could not be seen: {said}") from error
        if left:
            raise CloudError(f"processes {', '.join(left)} do not end")

    def _keep_log(self, name: str, text: str) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        with (self._logs / f"{name}.log").open("a", encoding="utf-8") as file:
            file.write(text)

    async def _connect(self, host: Host) -> asyncssh.SSHClientConnection:
        try:
            return await ssh.connect(host.target, _KNOCK_TIMEOUT_S)
        except ssh.RefusedError as error:
            raise HostRefusesError(str(error)) from error
        except ssh.SshError as error:
            raise CloudError(str(error)) from error

    async def __call__(self, connection: asyncssh.SSHClientConnection, instance: Instance) -> str:
        """Look at the host's Python, push our sources unless it has them, and tell how to start it."""
        host = self._hosts[instance.name]
        sources = None
        if not await self._has_sources(connection, host):
            sources = await push_sources(connection, host.python)
        self._words[host.name] = start_words(host, f"{self._prefix}.{host.name}", sources)
        return self._words[host.name]

    async def _has_sources(self, connection: asyncssh.SSHClientConnection, host: Host) -> bool:
        """Whether our packages are installed on the host, with the very sources that run here."""
        command = f"exec {shlex.quote(host.python)} -P -c {shlex.quote(_probe_text())}"
        reply = await ssh.run(connection, command, _PROBE_TIMEOUT_S)
        where = f"host {host.name}: {host.python}"
        try:
            words = json.loads(reply.output)
            version, torch, installed = tuple(words["version"]), words["torch"], words["installed"]
        except (ValueError, KeyError, TypeError) as error:
            said = (reply.error or reply.output).strip()[-300:]
            raise ssh.BrokenNodeError(
                f"{where} does not run ({said}); set `python` in hosts.toml to one of {_wanted()} with torch"
            ) from error
        if version < _OLDEST_PYTHON:
            found = ".".join(map(str, version))
            raise ssh.BrokenNodeError(f"{where} is Python {found}; it takes {_wanted()} or newer")
        if not torch:
            raise ssh.BrokenNodeError(f"{where} has no torch; set `python` in hosts.toml to one that has")
        return bool(installed == _our_digest())


def start_words(host: Host, folder: str, sources: str | None) -> str:
    """The shell words that start the host's Python in its work folder, with all that our agent is told.

    `sources` is the folder of our sources below the user's home, None if they are installed. Peers reach the
    host at its internal address, or where its sshd was reached, which SSH_CONNECTION says.
    """
    place = f"{host.folder.rstrip('/')}/nodes/{folder}"
    at_home = f'"$HOME"/{shlex.quote(place.removeprefix("~/"))}'
    quoted = at_home if place.startswith("~/") else shlex.quote(place)
    address = '"$3"' if host.internal_address is None else shlex.quote(host.internal_address)
    settings = {
        "PARCAE_NODE": shlex.quote(host.name),
        "PARCAE_ADDRESS": '"$A"',
        "PARCAE_REGISTER": '"$F"/pgids',
        "PARCAE_LOG": '"$F"/node.log',
        "PARCAE_DATA": '"$F"/../../data',
        **{name: shlex.quote(value) for name, value in host.environment.items()},
    }
    if host.metadata is not None:
        settings["PARCAE_METADATA"] = shlex.quote(host.metadata)
        settings["PARCAE_METADATA_FLAVOR"] = host.metadata_flavor
        settings["PARCAE_NOTICE_S"] = f"{host.notice_s:g}"
    if sources is not None:
        settings["PYTHONPATH"] = f'"$HOME"/{sources}'
    assignments = " ".join(f"{name}={value}" for name, value in settings.items())
    script = (
        f'F={quoted}; mkdir -p "$F" && chmod 700 "$F" && cd "$F" || exit 1; '
        f'A=$(set -- $SSH_CONNECTION; echo {address}); exec env {assignments} {shlex.quote(host.python)} "$@"'
    )
    return f"/bin/sh -c {shlex.quote(script)} parcae"


@functools.cache
def _probe_text() -> str:
    return Path(probe.__file__).read_text(encoding="utf-8")


@functools.cache
def _our_digest() -> str:
    return probe.sources_digest(Path(probe.__file__).resolve().parents[3])


def _wanted() -> str:
    return f"Python {_OLDEST_PYTHON[0]}.{_OLDEST_PYTHON[1]}"
