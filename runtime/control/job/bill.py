"""What a job's instances have cost, and what the same hours would have cost on demand."""

from __future__ import annotations

import time
from collections.abc import Mapping

from cloud.types import Instance, InstanceState

_GOING = (InstanceState.NOTICED, InstanceState.TERMINATING)


class Bill:
    """What the instances have cost so far. `speed` is how much faster than the wall their time runs.

    An instance costs what its pool said at its launch, until `reprice` says otherwise.
    """

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._held: dict[str, tuple[Instance, float | None]] = {}  # id -> instance, when it ended
        self._anchor = (0.0, 0.0)
        self._pools: Mapping[str, float] = {}  # USD an hour now, by TYPE/ZONE
        self._prices: dict[str, float] = {}  # USD an hour, by id, where it is not the launch's
        self._dearer_usd: dict[str, float] = {}  # what was paid beyond all hours at the price of now, by id

    def anchor(self, usd_per_hour: float, since_s: float) -> None:
        """The machine on which the launcher runs costs money too, since `since_s` (Unix seconds)."""
        self._anchor = (usd_per_hour, since_s)

    def restore(self, instance: Instance, ended_s: float | None) -> None:
        """An instance that an earlier launcher of the job has rented."""
        self._held[instance.id] = (instance, ended_s)

    def update(self, instance: Instance, now_s: float) -> None:
        """Note an instance's new state; times in Unix seconds."""
        if instance.id not in self._held and self._pools.get(instance.pool.key, 0.0) > 0:
            self._prices[instance.id] = self._pools[instance.pool.key]
        _, ended_s = self._held.get(instance.id, (instance, None))
        if instance.state is InstanceState.TERMINATED and ended_s is None:
            ended_s = now_s
        self._held[instance.id] = (instance, ended_s)

    def reprice(self, usd_per_hour: Mapping[str, float], now_s: float) -> None:
        """From now on (Unix seconds) instances cost this, by TYPE/ZONE; what they have cost stays."""
        self._pools = dict(usd_per_hour)
        for name, (instance, ended_s) in self._held.items():
            old, new = self._usd_per_hour(instance), self._pools.get(instance.pool.key, 0.0)
            if ended_s is None and new > 0 and new != old:
                hours = max(0.0, now_s - instance.launched_s) * self.speed / 3600
                self._dearer_usd[name] = self._dearer_usd.get(name, 0.0) + hours * (old - new)
                self._prices[name] = new

    def _usd_per_hour(self, instance: Instance) -> float:
        return self._prices.get(instance.id, instance.pool.spot_usd_per_hour)

    def spent(self, now_s: float) -> tuple[float, float]:
        """USD spent on spot, and what the same hours would have cost on demand."""
        usd_per_hour, since_s = self._anchor
        spot = on_demand = usd_per_hour * max(0.0, now_s - since_s) / 3600
        for instance, ended_s in self._held.values():
            hours = max(0.0, (ended_s or now_s) - instance.launched_s) * self.speed / 3600
            spot += hours * self._usd_per_hour(instance) + self._dearer_usd.get(instance.id, 0.0)
            on_demand += hours * instance.pool.on_demand_usd_per_hour
        return spot, on_demand

    def spent_now(self) -> tuple[float, float]:
        """`spent` until now."""
        return self.spent(time.time())

    def per_hour(self) -> float:
        """USD per hour of what is held now, the anchor included."""
        return sum(self._usd_per_hour(instance) for instance in self.held()) + self._anchor[0]

    def lasting_per_hour(self) -> float:
        """The same without what goes within minutes: another may have been rented in its place already."""
        lasting = (one for one in self.held() if one.state not in _GOING)
        return sum(self._usd_per_hour(instance) for instance in lasting) + self._anchor[0]

    def held(self) -> list[Instance]:
        """The instances that have not ended."""
        return [instance for instance, ended_s in self._held.values() if ended_s is None]
