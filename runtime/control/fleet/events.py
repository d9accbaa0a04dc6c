"""What a fleet tells its coordinator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloud.provider import CloudError
from cloud.types import Instance, Notice


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker of `node` is up; `hello` is its first line.

    A later one of the same node is a new incarnation. `backup_port`, where it is not None, is the port of
    the node's own 127.0.0.1 that leads to the backup. `adopted`: it worked for this job's last launcher.
    """

    node: str
    hello: dict[str, Any]
    backup_port: int | None = None
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class WorkerMessage:
    """A line from the worker that joined last on `node`."""

    node: str
    message: dict[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """The worker that joined last on `node` is gone for good; nothing more comes from it.

    `alone`: its agent says so, so its machine lives, and can be reached.
    """

    node: str
    why: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class WorkerFailed:
    """A worker of `node` ended before it joined, `times` in a row. The node's log says more."""

    node: str
    why: str
    times: int


@dataclass(frozen=True, slots=True)
class NodeNoticed:
    """The cloud has warned about `node`."""

    node: str
    notice: Notice


@dataclass(frozen=True, slots=True)
class InstanceChanged:
    """An instance is new or has moved to another state."""

    instance: Instance


@dataclass(frozen=True, slots=True)
class NodeBroken:
    """`node` could not be reached or set up: its instance is ended, and another is rented in its place."""

    node: str
    why: str


@dataclass(frozen=True, slots=True)
class RentFailed:
    """Renting failed. `error` is the provider's (quota, credentials).

    The fleet goes on trying; whether that makes sense is for the reader to decide.
    """

    why: str
    error: CloudError


FleetEvent = (
    WorkerJoined
    | WorkerMessage
    | WorkerLost
    | WorkerFailed
    | NodeBroken
    | NodeNoticed
    | InstanceChanged
    | RentFailed
)
