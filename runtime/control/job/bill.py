"""What a job's instances have cost, and what the same hours would have cost on demand."""

from __future__ import annotations

import time

from cloud.types import Instance, InstanceState

_GOING = (InstanceState.NOTICED, InstanceState.TERMINATING)


class Bill:
    """What the instances have cost so far. `speed` is how much faster than the wall their time runs."""

    def __init__(self, speed: float) -> None:
        self.speed = speed
        self._held: dict[str, tuple[Instance, float | None]] = {}  # id -> instance, when it ended
        self._anchor = (0.0, 0.0)

    def anchor(self, usd_per_hour: float, since_s: float) -> None:
        """The machine on which the launcher runs costs money too, since `since_s` (Unix seconds)."""
        self._anchor = (usd_per_hour, since_s)

    def restore(self, instance: Instance, ended_s: float | None) -> None:
        """An instance that an earlier launcher of the job has rented."""
        self._held[instance.id] = (instance, ended_s)

    def update(self, instance: Instance, now_s: float) -> None:
        """Note an instance's new state; times in Unix seconds."""
        _, ended_s = self._held.get(instance.id, (instance, None))
        if instance.state is InstanceState.TERMINATED and ended_s is None:
            ended_s = now_s
        self._held[instance.id] = (instance, ended_s)

    def spent(self, now_s: float) -> tuple[float, float]:
        """USD spent on spot, and what the same hours would have cost on demand."""
        usd_per_hour, since_s = self._anchor
        spot = on_demand = usd_per_hour * max(0.0, now_s - since_s) / 3600
        for instance, ended_s in self._held.values():
            hours = max(0.0, (ended_s or now_s) - instance.launched_s) * self.speed / 3600
            spot += hours * instance.pool.spot_usd_per_hour
            on_demand += hours * instance.pool.on_demand_usd_per_hour
        return spot, on_demand

    def spent_now(self) -> tuple[float, float]:
        """`spent` until now."""
        return self.spent(time.time())

    def per_hour(self) -> float:
        """USD per hour of what is held now, the anchor included."""
        return sum(instance.pool.spot_usd_per_hour for instance in self.held()) + self._anchor[0]

    def lasting_per_hour(self) -> float:
        """The same without what goes within minutes: another may have been rented in its place already."""
        lasting = (one for one in self.held() if one.state not in _GOING)
        return sum(instance.pool.spot_usd_per_hour for instance in lasting) + self._anchor[0]

    def held(self) -> list[Instance]:
        """The instances that have not ended."""
        return [instance for instance, ended_s in self._held.values() if ended_s is None]
