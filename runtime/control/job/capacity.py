"""The capacity record: what a job saw of its pools, a row a minute and pool, in the journal.

Earlier jobs' rows are what a later job in the same pools starts with; a job's own bend its forecast.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cloud.provider import CloudError, SpotProvider, TellsMarket
from cloud.types import PoolTally
from runtime.control.job.journal import Journal
from runtime.planning.forecast import Forecast, Forecaster
from runtime.planning.hazard import Hazard
from runtime.planning.outlook import USUAL, Outlook, PoolMinute, learnt_rates, outlook
from runtime.planning.prior import PriorRates

WINDOW_H = 7 * 24.0  # what is older hardly weighs anything
MINUTE_S = 60.0
# So long after its minute a row of another job may be written at the latest.
LATE_MINUTES = 2
_LOG = logging.getLogger(__name__)


def known_rates(
    journal: Journal, cloud: str, pools: Sequence[str], told: PriorRates | None
) -> PriorRates | None:
    """What earlier jobs of this journal saw in these pools, mixed with what the cloud told of them."""
    now = int(time.time() // MINUTE_S)
    learnt = learnt_rates(journal.capacity(cloud, pools, now - int(WINDOW_H * 60)), now)
    return told if learnt is None else learnt.mixed_with(told)


def in_words(prior: PriorRates) -> str:
    """For the event log."""
    return (
        f"{prior.losses_per_instance_hour:.3g} losses and {prior.gains_per_instance_hour:.3g} gains an "
        f"instance hour, worth {prior.weight_h:.2g} h of watching"
    )


class Outlooking:
    """A forecaster whose outlook the market moves; `replace` on a frozen one keeps planning pure."""

    def __init__(self, base: Hazard) -> None:
        self._base, self.outlook = base, USUAL
        self.name = base.name

    def forecast(self, history: Sequence[int], horizon: int, now_s: float) -> Forecast:
        """See `Forecaster`."""
        return replace(self._base, outlook=self.outlook).forecast(history, horizon, now_s)


class Window:
    """All jobs' record of some pools over the last week: read whole once, then the last minutes again."""

    def __init__(self, journal: Journal, cloud: str, pools: Sequence[str]) -> None:
        self._journal, self._cloud, self._pools = journal, cloud, tuple(pools)
        self._rows: list[PoolMinute] = []  # by minute
        self._read_to: int | None = None

    def read(self, minute: int) -> Sequence[PoolMinute]:
        """The rows as of this minute, what was written in it included; good until the next call."""
        oldest = since = minute - int(WINDOW_H * 60)
        if self._read_to is not None:  # a clock may be set back
            since = max(oldest, min(self._read_to, minute) - LATE_MINUTES)
        del self._rows[self._first(since) :]
        del self._rows[: self._first(oldest)]
        self._rows += self._journal.capacity(self._cloud, self._pools, since)
        self._read_to = minute
        return self._rows

    def _first(self, minute: int) -> int:
        return bisect_left(self._rows, minute, key=lambda row: row.minute)


class CapacityWatch:
    """Writes the record of one running job, and says what it means for the next minutes.

    `priced` is told what an instance of each pool costs now (USD an hour), by the pool's key.
    """

    def __init__(
        self,
        journal: Journal,
        job: str,
        cloud: str,
        provider: SpotProvider,
        wanted: int,
        priced: Callable[[Mapping[str, float]], None] = lambda prices: None,
    ) -> None:
        self._journal, self._job, self._cloud, self._wanted = journal, job, cloud, wanted
        self._provider, self._priced = provider, priced
        self._window: Window | None = None
        self._last: dict[str, PoolTally] | None = None
        self._forecaster: Outlooking | None = None
        self._task: asyncio.Task[None] | None = None
        self._began_usd: float | None = None
        self.now: dict[str, Any] = {}

    def bend(self, forecaster: Forecaster) -> Forecaster:
        """The same forecaster, heeding the market where it can."""
        if isinstance(self._provider, TellsMarket) and isinstance(forecaster, Hazard):
            self._forecaster = Outlooking(forecaster)
            return self._forecaster
        return forecaster

    def start(self) -> None:
        """Begin to write, where the provider has pools to tell of."""
        if isinstance(self._provider, TellsMarket):
            self._journal.prune_capacity()
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what the last minute brought, and end: call before the fleet is given back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
            try:
                self.write(time.time())
            except Exception:  # noqa: BLE001 - as above
                _LOG.exception("the capacity record was not written")

    async def _run(self) -> None:
        assert isinstance(self._provider, TellsMarket)
        while True:
            try:
                with contextlib.suppress(CloudError):
                    await self._provider.ask_market()
                await asyncio.to_thread(self.write, time.time())
                self._priced({key: one.spot_usd_per_hour for key, one in (self._last or {}).items()})
            except Exception:  # noqa: BLE001 - a record is never worth a job
                _LOG.exception("the capacity record was not written")
            await asyncio.sleep(MINUTE_S - time.time() % MINUTE_S)

    def write(self, now_s: float) -> None:
        """The rows of the minute that ends now, and the outlook that follows from them.

        What came before the first row was asked for together: the fleet's start, no gain.
        """
        assert isinstance(self._provider, TellsMarket)
        minute, tallies = int(now_s // MINUTE_S), {one.key: one for one in self._provider.tallies()}
        rows = []
        for key, one in tallies.items():
            before = one if self._last is None else self._last.get(key, one)
            rows.append(
                PoolMinute(
                    minute, key, one.held, self._wanted, one.lost - before.lost, one.came - before.came,
                    one.tried - (before.tried if self._last is not None else 0),
                    one.refused - (before.refused if self._last is not None else 0),
                    one.spot_usd_per_hour, one.on_demand_usd_per_hour, one.score,
                )
            )  # fmt: skip
        self._last = tallies
        self._journal.put_capacity(self._job, self._cloud, rows)
        self._window = self._window or Window(self._journal, self._cloud, list(tallies))
        seen = self._window.read(minute)
        look = outlook(seen, minute)
        if self._forecaster is not None:
            self._forecaster.outlook = look
        self.now = self._picture(rows, seen, minute, look)

    def _picture(
        self, rows: Sequence[PoolMinute], seen: Sequence[PoolMinute], minute: int, look: Outlook
    ) -> dict[str, Any]:
        """What `parcae status` shows of it: the cheapest price and its change since the job began."""
        prices = [row.spot_usd_per_hour for row in rows if row.spot_usd_per_hour > 0]
        price = min(prices, default=None)
        if self._began_usd is None:
            self._began_usd = price
        began = self._began_usd
        lately = seen[bisect_left(seen, minute - 59, key=lambda row: row.minute) :]
        return {
            "spot_usd_per_hour": price,
            "price_change": price / began - 1 if price is not None and began else None,
            "launches_tried": sum(row.tried for row in lately),
            "launches_refused": sum(row.refused for row in lately),
            "scores": {row.pool: row.score for row in rows if row.score is not None},
            "expected_gains": look.gains,
            "expected_losses": look.losses,
        }
