"""Which pools may be asked now: those without capacity are left alone for a while. Pure; times are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from cloud.types import Pool

LONGEST_S = 600.0
INTERRUPTED = "interrupted"  # the why of a pool that took back what it gave: no launch was refused


class Pools:
    """The pools of one launch, known by instance type and zone.

    `cool_down_s` doubles with every failure in a row, up to ten minutes.
    """

    def __init__(self, pools: Sequence[Pool], cool_down_s: float) -> None:
        self.all = tuple(pools)
        self._first_s = cool_down_s
        self._closed_until_s: dict[tuple[str, str], float] = {}
        self._failures: dict[tuple[str, str], int] = {}
        self._whys: dict[tuple[str, str], str] = {}
        self.tried: Counter[tuple[str, str]] = Counter()
        self.refused: Counter[tuple[str, str]] = Counter()

    def open(self, now_s: float) -> list[Pool]:
        """Those that may be asked, in the order they were given."""
        return [pool for pool in self.all if self._closed_until_s.get(_key(pool), 0.0) <= now_s]

    def failed(self, instance_type: str, zone: str, why: str, now_s: float) -> None:
        """A pool had nothing, or took back what it gave."""
        key = instance_type, zone
        pause_s = min(LONGEST_S, self._first_s * 2 ** self._failures.get(key, 0))
        self._failures[key] = self._failures.get(key, 0) + 1
        self._closed_until_s[key] = now_s + pause_s
        self._whys[key] = why
        if why != INTERRUPTED:
            self.tried[key] += 1
            self.refused[key] += 1

    def gave(self, instance_type: str, zone: str) -> None:
        """A pool gave what was asked: its failures are forgotten."""
        self.tried[instance_type, zone] += 1
        self._failures.pop((instance_type, zone), None)
        self._closed_until_s.pop((instance_type, zone), None)

    def next_open_s(self, now_s: float, among: Sequence[Pool] | None = None) -> float:
        """Seconds until a pool (of all, or `among` these) may be asked (again)."""
        pools = self.all if among is None else among
        return min(
            (max(0.0, self._closed_until_s.get(_key(pool), 0.0) - now_s) for pool in pools), default=0.0
        )

    def shortage(self, now_s: float, among: Sequence[Pool] | None = None) -> str:
        """Why nothing can be rented now, in words for a person; empty if a pool is open."""
        pools = self.all if among is None else among
        if any(self._closed_until_s.get(_key(pool), 0.0) <= now_s for pool in pools):
            return ""
        whys = {self._whys.get(_key(pool), "") for pool in pools}
        return (
            f"no capacity in {_names(pools)} ({'; '.join(sorted(whys))}); "
            f"asking again in {self.next_open_s(now_s, among):.0f} s"
        )

    def of(self, instance_type: str, zone: str) -> Pool | None:
        """The pool of an instance."""
        return next((pool for pool in self.all if _key(pool) == (instance_type, zone)), None)


def _key(pool: Pool) -> tuple[str, str]:
    return pool.instance_type, pool.zone


def _names(pools: Iterable[Pool]) -> str:
    """`g5.xlarge in us-east-1a, us-east-1b; ...`"""
    zones: dict[str, list[str]] = {}
    for pool in pools:
        zones.setdefault(pool.instance_type, []).append(pool.zone)
    return "; ".join(f"{name} in {', '.join(found)}" for name, found in zones.items())
