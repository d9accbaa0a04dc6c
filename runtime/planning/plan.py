"""Which layout to run next: the one that commits the most over the look-ahead, its cost paid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.planning.costs import Cost
from runtime.planning.profile import Profile
from runtime.planning.types import Layout

# Two plans closer than this (relative) are equal: then nothing changes. Far below what a profile can tell
# apart.
EQUAL = 1e-9


@dataclass(frozen=True)
class Option:
    """One thing that can be done now: go to `layout` at `cost`; `stay` marks going on as it is."""

    layout: Layout
    cost: Cost
    stay: bool = False


@dataclass(frozen=True)
class Choice:
    """The option taken; `liveput` is the samples a second it is expected to commit over the horizon."""

    option: Option
    liveput: float


def choose(
    profile: Profile,
    options: Sequence[Option],
    running: Layout | None,
    span_s: float,
    ahead: Callable[[Layout, float], float],
    horizon_s: float,
) -> Choice:
    """The best of `options` (not empty): what it commits in `span_s`, and is worth after. Staying wins.

    `ahead` tells what a layout is worth then, with so many seconds of its change left.
    """

    def value(option: Option) -> float:
        prepare_s = min(option.cost.prepare_s, span_s)
        left_s = span_s - option.cost.total_s
        before = profile.samples_per_s(running) if running else 0.0
        now = prepare_s * before + max(0.0, left_s) * profile.samples_per_s(option.layout)
        return now + ahead(option.layout, max(0.0, -left_s))

    ranked = sorted(
        options, key=lambda option: (-value(option), not option.stay, option.layout.positions, option.layout)
    )
    best = ranked[0]
    for option in ranked[1:]:
        if option.stay and value(option) >= value(best) * (1 - EQUAL):
            best = option
    return Choice(best, value(best) / horizon_s)
