"""The words every provider shares: an instance, its states, a notice, and how it is reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class InstanceState(StrEnum):
    """Where an instance is in its life, as the provider's API reports it."""

    REQUESTED = "requested"
    BOOTING = "booting"
    RUNNING = "running"
    NOTICED = "noticed"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


# Every legal move, each with the thing that causes it. A move that is not listed is a programming error.
TRANSITIONS: Mapping[InstanceState, frozenset[InstanceState]] = {
    # the API accepted the request; or it failed and nothing was rented
    InstanceState.REQUESTED: frozenset({InstanceState.BOOTING, InstanceState.TERMINATED}),
    # SSH answers; or it was taken or ended before it did
    InstanceState.BOOTING: frozenset(
        {InstanceState.RUNNING, InstanceState.NOTICED, InstanceState.TERMINATING, InstanceState.TERMINATED}
    ),
    # the cloud warned; or we ended it; or it vanished without a warning
    InstanceState.RUNNING: frozenset(
        {InstanceState.NOTICED, InstanceState.TERMINATING, InstanceState.TERMINATED}
    ),
    # the warning came true, or we let it go before the deadline, or the cloud withdrew the warning
    InstanceState.NOTICED: frozenset(
        {InstanceState.RUNNING, InstanceState.TERMINATING, InstanceState.TERMINATED}
    ),
    # the API says that it is gone
    InstanceState.TERMINATING: frozenset({InstanceState.TERMINATED}),
    InstanceState.TERMINATED: frozenset(),
}


class NoticeKind(StrEnum):
    """How sure the cloud is: an interruption has a deadline, a rebalance is an earlier, weaker hint."""

    INTERRUPTION = "interruption"
    REBALANCE = "rebalance"


@dataclass(frozen=True)
class Notice:
    """A cloud's warning about one instance.

    `deadline_s` is in Unix seconds, None for a rebalance hint.
    """

    kind: NoticeKind
    deadline_s: float | None


@dataclass(frozen=True)
class Pool:
    """Where capacity comes from: one instance type in one zone, with its prices in USD per hour."""

    zone: str
    instance_type: str
    gpus: int
    spot_usd_per_hour: float
    on_demand_usd_per_hour: float

    @property
    def key(self) -> str:
        """How records call it, whatever it costs."""
        return f"{self.instance_type}/{self.zone}"


@dataclass(frozen=True)
class PoolTally:
    """What a pool holds for a job now, and what it has done since the job began.

    `tried` launches asked it, of which `refused` brought nothing; `score` is the cloud's own, None: not told.
    """

    key: str
    held: int
    lost: int
    came: int
    tried: int
    refused: int
    spot_usd_per_hour: float
    on_demand_usd_per_hour: float
    score: float | None = None


@dataclass(frozen=True)
class SshTarget:
    """How to reach an instance over SSH. Keys are OpenSSH text; the host key is pinned."""

    host: str
    port: int
    username: str
    client_key: str
    host_public_key: str


@dataclass(frozen=True)
class OwnSshTarget:
    """A machine of the user's own, reached as their `ssh` reaches it: by their configuration (ProxyJump and
    aliases included), their keys and agent, and the host keys that they know.

    `config` is the path of the configuration, None: `~/.ssh/config`. Port and name of the user are what it
    says, unless given here.
    """

    host: str
    port: int | None = None
    username: str | None = None
    config: str | None = None


@dataclass(frozen=True)
class Instance:
    """One rented machine. `launched_s` is in Unix seconds; `token` is that of its request."""

    id: str
    name: str
    job: str
    token: str
    pool: Pool
    state: InstanceState
    launched_s: float

    def moved(self, state: InstanceState) -> Instance:
        """The same instance in another state.

        Raises:
            ValueError: the table has no such move.
        """
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"instance {self.name}: no move from {self.state} to {state}")
        return replace(self, state=state)


@dataclass(frozen=True)
class LaunchReply:
    """What a request for instances brought: those that were rented, and why the rest were not.

    `shortage`, where it is not empty, is for a person: no pool has anything, and when we ask again.
    """

    instances: tuple[Instance, ...]
    refused: int = 0
    why: str = ""
    shortage: str = ""
