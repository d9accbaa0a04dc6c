"""The clouds as the tests of all of them see them: the provider over its double, and what can go wrong there.

A place is one launch at one cloud. `provider` is what a process of that launch has; calling it again is what
a successor of that process has, with nothing but the disk and the cloud to go by.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from cloud.aws.api import Api as AwsApi
from cloud.aws.launch_record import LaunchRecord as AwsRecord
from cloud.aws.market import offers
from cloud.aws.provider import AwsProvider
from cloud.aws.region import Region
from cloud.gcp.api import Api as GcpApi
from cloud.gcp.launch_record import LaunchRecord as GcpRecord
from cloud.gcp.market import prospects
from cloud.gcp.provider import GcpProvider
from cloud.hosts.inventory import Host
from cloud.hosts.provider import HostsProvider
from cloud.local.provider import LocalProvider
from cloud.local.schedule import Schedule
from cloud.provider import SpotProvider
from cloud.types import InstanceState, OwnSshTarget
from runtime.control.providers import aws as aws_jobs
from runtime.control.providers import gcp as gcp_jobs
from tests.cloud.aws import test_provider as aws_tests
from tests.cloud.aws.front import Front
from tests.cloud.aws.serving import reset
from tests.cloud.gcp import test_provider as gcp_tests
from tests.cloud.gcp.fake_compute import REGION, ZONES, FakeCompute, Fault
from tests.cloud.hosts.test_provider import DOWN, TIMES, UP, Doors

CLOUDS = ("local", "hosts", "aws", "gcp")


def at(*names: str, **left_out: str) -> pytest.MarkDecorator:
    """Run a test at these clouds; of every other one it says why not."""
    assert sorted((*names, *left_out)) == sorted(CLOUDS), "each cloud is named, or left out for a reason"
    return pytest.mark.parametrize("place", names, indirect=True)


class Place(Protocol):
    """What every cloud can do."""

    name: str

    def provider(self) -> SpotProvider:
        """As the launch's process has it, and each successor of that."""

    def live(self) -> set[str]:
        """The names of what costs money, by the double's own books."""

    def take(self, provider: Any, name: str) -> None:
        """An instance is gone without a word."""

    def empty(self, provider: Any) -> None:
        """From now on there is no capacity."""

    def refill(self, provider: Any) -> None:
        """There is some again."""

    def close(self) -> None:
        """Switch the double off."""


class Rented(Place, Protocol):
    """And what can only happen where there is an account and an API."""

    folder: Path  # the launch's records
    inserts: tuple[str, ...]  # the names of the calls that rent
    pauses: list[float]

    def hold(self, action: Callable[[str], None]) -> None:
        """Called with a call's name before it is carried out."""

    def refuse(self, kind: str, times: int = 10**6) -> Callable[[], None]:
        """The next calls fail; what is returned mends it.

        `throttled`, `lost` (carried out, and the answer breaks), `quota`, `expired`.
        """

    def linger(self, seconds: float) -> None:
        """Instances take so long to end, and are billed meanwhile."""

    def rents(self) -> int:
        """How often something was asked for."""

    def sweep(self) -> list[str]:
        """What `parcae down` and `parcae gc` do."""

    def anew(self, name: str) -> None:
        """From now on this is another launch, in an account in which nobody has been."""

    def traces(self) -> list[str]:
        """What beside instances is left of the launch in the account."""


class LocalPlace:
    """This machine, four nodes."""

    name = "local"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._providers: list[LocalProvider] = []

    def provider(self) -> LocalProvider:
        schedule = Schedule.constant(4)
        self._providers.append(LocalProvider("job", self._folder, schedule, zygote=False))
        return self._providers[-1]

    def live(self) -> set[str]:
        return {name for one in self._providers for name in one.names()}

    def take(self, provider: LocalProvider, name: str) -> None:
        provider.kill(name)

    def empty(self, provider: LocalProvider) -> None:
        provider._present.clear()

    def refill(self, provider: LocalProvider) -> None:
        provider.appear("late")

    def close(self) -> None:
        pass


class HostsPlace:
    """Four hosts behind doors."""

    name = "hosts"

    def __init__(self) -> None:
        self.doors = Doors(a=UP, b=UP, c=UP, d=UP)
        self._providers: list[HostsProvider] = []

    def provider(self) -> HostsProvider:
        hosts = [Host(name, OwnSshTarget("127.0.0.1", 9)) for name in self.doors.doors]
        times = replace(TIMES, cool_s=0.05)
        self._providers.append(HostsProvider("job", "ab12", hosts, self.doors, times))
        return self._providers[-1]

    def live(self) -> set[str]:
        seats = [seat for one in self._providers for seat in one._seats.values()]
        used = {seat.host.name for seat in seats if seat.instance is not None or seat.last is not None}
        return used - set(self.doors.cleared)

    def take(self, provider: HostsProvider, name: str) -> None:
        self.doors.doors[name] = DOWN
        provider.suspect(name)

    def empty(self, provider: HostsProvider) -> None:
        self.doors.doors = dict.fromkeys(self.doors.doors, DOWN)
        for seat in provider._seats.values():
            seat.is_open, seat.why = False, "refuses connections"

    def refill(self, provider: HostsProvider) -> None:
        self.doors.doors = dict.fromkeys(self.doors.doors, UP)

    def close(self) -> None:
        pass


class AwsPlace:
    """EC2 by moto and the front."""

    name = "aws"
    inserts = ("CreateFleet",)
    _CODES = {  # noqa: RUF012
        "throttled": ("RequestLimitExceeded", 503),
        "lost": ("InternalError", 500),
        "quota": ("MaxSpotInstanceCountExceeded", 400),
        "expired": ("ExpiredToken", 400),
        "skewed": ("RequestExpired", 400),
    }

    def __init__(self, front: Front, folder: Path) -> None:
        self.front, self._root, self.folder = front, folder, folder / "aws"
        self.pauses: list[float] = []
        self._market: Any = ()

    def provider(self) -> Any:
        chosen = aws_tests.settings()
        api = AwsApi(pause=self.pauses.append)
        if not self._market:
            self._market = offers(api, chosen, 4)
        found, vpc = self._market
        record = AwsRecord.at(self.folder, "job", api.region)
        return AwsProvider([Region(api, vpc, found[0].pools)], chosen, record, self.folder, self._root)

    def live(self) -> set[str]:
        ending = {
            name
            for name, since_s in self.front._ending_s.items()
            if time.monotonic() - since_s < self.front.shutting_down_s
        }
        return {one.id for one in self.front.live()} | ending

    def take(self, provider: Any, name: str) -> None:
        self.front.interrupt(name)

    def empty(self, provider: Any) -> None:
        self.front.default_capacity = 0

    def refill(self, provider: Any) -> None:
        self.front.default_capacity = 10

    def hold(self, action: Callable[[str], None]) -> None:
        self.front.hold = action

    def refuse(self, kind: str, times: int = 10**6) -> Callable[[], None]:
        code, status = self._CODES[kind]
        action = "CreateFleet" if kind in ("lost", "quota") else "*"
        fault = self.front.fault(action, code, status=status, times=times, after=kind == "lost")
        return lambda: setattr(fault, "times", 0)

    def linger(self, seconds: float) -> None:
        self.front.shutting_down_s = seconds

    def rents(self) -> int:
        return len(self.front.actions("CreateFleet"))

    def sweep(self) -> list[str]:
        return aws_jobs.sweep(self.folder)

    def anew(self, name: str) -> None:
        reset()
        self.front._tokens.clear()
        self._market = ()
        self.folder = self._root / name

    def traces(self) -> list[str]:
        return list(self.front.backend.launch_template_name_to_ids)

    def close(self) -> None:
        pass


class GcpPlace:
    """Compute Engine by its discovery document."""

    name = "gcp"
    inserts = ("regionInstances.bulkInsert",)
    _CODES = {  # noqa: RUF012
        "throttled": ("rateLimitExceeded", 403),
        "lost": ("backendError", 503),
        "quota": ("quotaExceeded", 403),
        "expired": ("authError", 401),
        "skewed": ("authError", 401),
    }

    def __init__(self, compute: FakeCompute, folder: Path) -> None:
        self.compute, self._root, self.folder = compute, folder, folder / "gcp"
        compute.operation_s = 0.01
        self.pauses: list[float] = []

    def provider(self) -> GcpProvider:
        api = GcpApi(pause=self.pauses.append)
        settings = gcp_tests.settings()
        pools = [prospect.pool for prospect in prospects(api, settings, 4)]
        record = GcpRecord.at(self.folder, "job", api.project, REGION)
        return GcpProvider(api, settings, record, pools)

    def live(self) -> set[str]:
        return set(self.compute.live())

    def take(self, provider: Any, name: str) -> None:
        self.compute.preempt(name)

    def empty(self, provider: Any) -> None:
        self.compute.capacity = dict.fromkeys(ZONES, 0)

    def refill(self, provider: Any) -> None:
        self.compute.capacity = dict.fromkeys(ZONES, 10)

    def hold(self, action: Callable[[str], None]) -> None:
        self.compute.hold = action

    def refuse(self, kind: str, times: int = 10**6) -> Callable[[], None]:
        reason, status = self._CODES[kind]
        method = "regionInstances.bulkInsert" if kind in ("lost", "quota") else "*"
        said = "Quota 'PREEMPTIBLE_NVIDIA_L4_GPUS' exceeded" if kind == "quota" else "injected"
        fault = Fault(method, reason, status, said, times=times, after=kind == "lost")
        self.compute.faults.append(fault)
        return lambda: setattr(fault, "times", 0)

    def linger(self, seconds: float) -> None:
        self.compute.stopping_s = seconds

    def rents(self) -> int:
        return self.compute.calls.count("regionInstances.bulkInsert")

    def sweep(self) -> list[str]:
        return gcp_jobs.sweep(self.folder)

    def anew(self, name: str) -> None:
        self.folder = self._root / name

    def traces(self) -> list[str]:
        return [path.name for path in self.folder.glob("requests/*.json")]

    def close(self) -> None:
        self.compute.stopping_s = 0.0


@contextlib.contextmanager
def place_of(name: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The cloud of that name with a fresh account."""
    made: Any
    if name == "local":
        made = LocalPlace(folder)
    elif name == "hosts":
        made = HostsPlace()
    elif name == "aws":
        made = AwsPlace(request.getfixturevalue("ec2"), folder)
    else:
        made = GcpPlace(request.getfixturevalue("compute"), folder)
    yield made
    made.close()


class Gate:
    """Holds the first call of these names until it is opened."""

    def __init__(self, place: Rented) -> None:
        self.entered, self._open = threading.Event(), threading.Event()

        def hold(called: str) -> None:
            if called in place.inserts and not self.entered.is_set():
                self.entered.set()
                self._open.wait(10)

        place.hold(hold)

    def open(self) -> None:
        """Let it go on."""
        self._open.set()


async def living(provider: SpotProvider) -> set[str]:
    """The names of what the provider says is not over."""
    ended = InstanceState.TERMINATED
    return {one.name for one in await provider.describe() if one.state is not ended}
