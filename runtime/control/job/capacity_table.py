"""The journal's table of capacity: a row a minute, pool and job, for a limited time."""

from __future__ import annotations

import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from runtime.planning.outlook import PoolMinute

KEPT_DAYS = 30
MOST_ROWS = 500_000

SCHEMA = """
CREATE TABLE IF NOT EXISTS capacity (
  cloud TEXT NOT NULL, pool TEXT NOT NULL, minute INTEGER NOT NULL, job TEXT NOT NULL, held INTEGER NOT NULL,
  wanted INTEGER NOT NULL, lost INTEGER NOT NULL, came INTEGER NOT NULL, tried INTEGER NOT NULL,
  refused INTEGER NOT NULL, spot_usd_per_hour REAL NOT NULL, on_demand_usd_per_hour REAL NOT NULL, score REAL,
  PRIMARY KEY (cloud, pool, minute, job)) WITHOUT ROWID;
"""


class CapacityTable(ABC):
    """What a journal can do with it. Minutes are counted from the Unix epoch."""

    @abstractmethod
    def _write(self) -> AbstractContextManager[sqlite3.Connection]: ...

    @abstractmethod
    def _rows(self, query: str, *values: Any) -> list[sqlite3.Row]: ...

    def put_capacity(self, job: str, cloud: str, rows: Sequence[PoolMinute]) -> None:
        """Record a minute of a job; rows of the same minute are added to what it has."""
        with self._write() as db:
            db.executemany(
                "INSERT INTO capacity VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO UPDATE SET held = excluded.held, lost = lost + excluded.lost,"
                " came = came + excluded.came,"
                " tried = tried + excluded.tried, refused = refused + excluded.refused",
                [
                    (cloud, one.pool, one.minute, job, one.held, one.wanted, one.lost, one.came, one.tried,
                     one.refused, one.spot_usd_per_hour, one.on_demand_usd_per_hour, one.score)
                    for one in rows
                ],
            )  # fmt: skip

    def capacity(self, cloud: str, pools: Sequence[str], since_minute: int) -> list[PoolMinute]:
        """What any job has recorded of these pools since then, by minute."""
        marks = ", ".join("?" * len(pools))
        rows = self._rows(
            "SELECT minute, pool, held, wanted, lost, came, tried, refused, spot_usd_per_hour,"
            f" on_demand_usd_per_hour, score FROM capacity WHERE cloud = ? AND pool IN ({marks})"
            " AND minute >= ? ORDER BY minute",
            cloud, *pools, since_minute,
        )  # fmt: skip
        return [PoolMinute(*row) for row in rows]

    def recorded_pools(self, cloud: str, since_minute: int) -> list[str]:
        """The pools of a cloud of which any job has recorded something since then, by name."""
        query = "SELECT DISTINCT pool FROM capacity WHERE cloud = ? AND minute >= ? ORDER BY pool"
        return [str(row["pool"]) for row in self._rows(query, cloud, since_minute)]

    def prune_capacity(self, now_s: float | None = None) -> None:
        """Drop what is older than thirty days, and of the rest all but the newest half a million rows."""
        minute = int((time.time() if now_s is None else now_s) // 60) - KEPT_DAYS * 24 * 60
        with self._write() as db:
            db.execute(
                "DELETE FROM capacity WHERE minute < max(?, coalesce("
                "(SELECT minute FROM capacity ORDER BY minute DESC LIMIT 1 OFFSET ?), 0))",
                (minute, MOST_ROWS),
            )
