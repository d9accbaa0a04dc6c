"""Which clouds there are, and what a job needs to know of the one that it runs on.

Each cloud has a module here with one function, `setup(request, spec, journal) -> ProviderSetup`. It is
imported when a job on that cloud starts, so that nobody pays for the libraries of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cloud.provider import SpotProvider
from runtime.control.fleet.deploy import AgentStart
from runtime.control.fleet.node_link import LinkTimes
from runtime.planning.prior import PriorRates

if TYPE_CHECKING:
    from runtime.control.job.job import LaunchRequest
    from runtime.control.job.journal import Journal
    from runtime.planning.model import ModelSpec

CLOUDS: Mapping[str, str] = {
    "local": "runtime.control.providers.local",
    "aws": "runtime.control.providers.aws",
    "gcp": "runtime.control.providers.gcp",
    "hosts": "runtime.control.providers.hosts",
}


@dataclass(frozen=True)
class ProviderSetup:
    """One job's way to its cloud.

    `time_scale` is how many seconds of the cloud's time pass in a second (local: the trace's speed), and
    `start_clock` lets them pass: it is called at the first committed step, or at the very start where
    `clock_waits` is false. `poll_s` is how often the API is asked about the instances. `anchor_reachable`
    says whether nodes can open connections to this machine; where they cannot, they reach its backup through
    their SSH connection. `agent_start` None: nodes have these packages and this Python already. `prior` are
    the rates at which the cloud says that instances go and come, and `market` what it said of each pool, in
    words. `spec` is the model on the device that will be rented, and `wanted` how many nodes the user's
    limits allow; None: as they were asked for. `gpus` is how many GPUs, and so workers, every node has.
    `here`: nodes are processes of this machine, so they read its files, and their devices are make-believe,
    of which their steps say nothing.
    """

    provider: SpotProvider
    time_scale: float = 1.0
    start_clock: Callable[[], None] = lambda: None
    clock_waits: bool = True
    link_times: LinkTimes = field(default_factory=LinkTimes)
    poll_s: float = 1.0
    anchor_reachable: bool = True
    agent_start: AgentStart | None = None
    prior: PriorRates | None = None
    market: tuple[str, ...] = ()
    spec: ModelSpec | None = None
    wanted: int | None = None
    gpus: int = 1
    here: bool = False


def cloud_module(cloud: str) -> Any:
    """The cloud's module. One that costs money also has `plan`, `sweep` and `foreign_instances`.

    All but this machine's have `sweep_job(journal, record)`: it ends what a job has left there, and tells
    what has ended and what may still run. One that can rent the anchor, too, has `anchor`, `anchor_lives` and
    `end_anchor`.

    Raises:
        KeyError: there is no such cloud; the command line has checked.
    """
    return import_module(CLOUDS[cloud])


def provider_setup(request: LaunchRequest, spec: ModelSpec, journal: Journal) -> ProviderSetup:
    """The setup for the request's cloud. Nothing is rented and nothing is asked yet.

    Raises:
        KeyError: there is no such cloud; the command line has checked.
        CloudError: the cloud's library is missing, or there are no credentials or no region.
        InputError: the fleet's settings are wrong.
    """
    made: ProviderSetup = cloud_module(request.cloud).setup(request, spec, journal)
    return made


def cloud_plan(request: LaunchRequest, spec: ModelSpec) -> Mapping[str, Any] | None:
    """What a launch would rent, cost and send, where the cloud's module can tell: it has a `plan` then.

    Raises:
        CloudError, InputError: as `provider_setup`.
    """
    plan: Any = getattr(cloud_module(request.cloud), "plan", None)
    if plan is None:
        return None
    made: Mapping[str, Any] = plan(request, spec)
    return made
