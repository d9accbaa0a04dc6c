"""The protocol that every cloud fulfils, and the errors that tell the caller what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from cloud.types import Instance, LaunchReply, Notice, OwnSshTarget, PoolTally, SshTarget


class CloudError(Exception):
    """Anything a provider reports. The message names the call and the next thing to do."""


class NoCapacityError(CloudError):
    """The pool has nothing now: try another pool, or wait."""


class QuotaError(CloudError):
    """An account limit stands in the way: retrying cannot help. The message names the quota."""


class CredentialsError(CloudError):
    """The cloud does not accept who we are."""


class MaybeStillRunningError(CloudError):
    """We cannot prove that everything ended: something may still cost money."""


class SpotProvider(Protocol):
    """One cloud. All calls are idempotent under the same token and safe to repeat after a crash."""

    @property
    def name(self) -> str:
        """`local`, `aws`, `gcp` or `hosts`."""
        ...

    async def start(self) -> None:
        """Prepare what launches need (keys, networks). Call once before anything else."""
        ...

    async def recover(self, held: Sequence[Instance], tokens: Sequence[str]) -> None:
        """Go on with what a killed process of this job has rented: call once, after `start`.

        `held` may have ended since. What the requests under `tokens` brought is not known: it is found out,
        if need be by sending them again. All of it that lives is in `describe` from now on.
        """
        ...

    async def request(self, count: int, token: str) -> LaunchReply:
        """Rent up to `count` spot instances now, without waiting: what is refused is in the reply."""
        ...

    async def wait_for_capacity(self, timeout_s: float) -> None:
        """Return when a new request may succeed, at the latest after `timeout_s`."""
        ...

    async def describe(self) -> Sequence[Instance]:
        """Every instance of this job that the API knows, ended ones included for a while."""
        ...

    async def terminate(self, names: Sequence[str]) -> None:
        """Ask for the end of these instances. Unknown and ended ones are no error."""
        ...

    def ssh_target(self, instance: Instance) -> SshTarget | OwnSshTarget:
        """How to reach a booted instance."""
        ...

    async def close(self) -> None:
        """End every instance of this job and give back what `start` made."""
        ...


@runtime_checkable
class HearsOfTrouble(Protocol):
    """A provider that has no API to ask, and learns from the fleet that a node may be gone."""

    def suspect(self, name: str) -> None:
        """The node cannot be reached: look after it now. Returns at once."""
        ...


@runtime_checkable
class TellsNotices(Protocol):
    """A provider whose API, too, tells of interruptions to come: for nodes that do not hear of them."""

    def notices(self) -> Mapping[str, Notice]:
        """By instance name, as of the last `describe`."""
        ...


@runtime_checkable
class TellsMarket(Protocol):
    """A provider that rents from pools, and knows how each of them has treated us."""

    def tallies(self) -> Sequence[PoolTally]:
        """Of every pool, as far as is known now."""
        ...

    async def ask_market(self) -> None:
        """Bring prices and scores up to date, as often as the API allows."""
        ...
