"""The dynamic programme behind every plan: what each layout is worth before the events of each step to come.

A step is a stretch of time with one batch of losses and gains at its start. Who is lost is unknown: the exact
law says with which probability a layout loses no member, or keeps at least so many replicas of every stage
(its class). After the events the best layout is taken, its cost paid from the step. Values are samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb

import numpy as np
import numpy.typing as npt

from runtime.planning.costs import NO_COST, Change, Cost, CostModel
from runtime.planning.forecast import Turn
from runtime.planning.horizon import Step
from runtime.planning.migration import sketch_change
from runtime.planning.placement import chosen_placement, instances_needed
from runtime.planning.preemption import stage_ways
from runtime.planning.profile import Profile
from runtime.planning.types import Layout

Vector = npt.NDArray[np.float64]
MOST_CLASSES = 4  # a stage that loses more replicas at once than this is treated as if it lost this many
OWED_S = 60.0  # tables are made for a change with this left; others lie on the line through it
REACH = 6  # how far from now an uncertain availability is followed, in instances


@dataclass(frozen=True, eq=False)
class Worth:
    """What layouts are worth, in samples: when they train, and with OWED_S of a change still before them."""

    ready: Vector
    owing: Vector

    def of(self, number: int, owed_s: float) -> float:
        """The worth of one layout with so many seconds of a change left."""
        ready = float(self.ready[number])
        return ready + (float(self.owing[number]) - ready) * owed_s / OWED_S


class Programme:
    """Values of a fixed set of layouts under one profile and cost model. Tables outlive decisions."""

    def __init__(
        self,
        profile: Profile,
        costs: CostModel,
        layouts: Sequence[Layout],
        max_nodes: int,
        losses_noticed: bool = False,
        gpus: int = 1,
    ) -> None:
        """`max_nodes` instances of `gpus` GPUs each; losses and gains are instances."""
        self.layouts = tuple(layouts)
        self.index = {layout: number for number, layout in enumerate(self.layouts)}
        self._profile, self._costs, self._noticed = profile, costs, losses_noticed
        self._max_nodes, self._gpus = max_nodes, gpus
        self.rate = np.array([profile.samples_per_s(layout) for layout in self.layouts])
        self._needs = np.array([instances_needed(layout, gpus) for layout in self.layouts], dtype=int)
        self._laws: dict[int, _Law] = {}
        self._known_odds: dict[tuple[tuple[Turn, ...], tuple[int, int]], list[tuple[list[int], Vector]]] = {}
        self._prices: dict[int, tuple[Vector, Vector, Vector]] = {}
        self._gains: dict[tuple[int, float, bool], tuple[Vector, Vector | None]] = {}
        self._kept: dict[tuple[tuple[Step, ...], int], Worth] = {}

    def values(self, steps: Sequence[Step], now: int) -> Worth:
        """What each layout is worth before the first of `steps`, with `now` instances then.

        After the last step nothing counts. A layout that cannot be kept is worth what the best change away
        from it is.
        """
        key = (tuple(steps), now)
        if key not in self._kept:
            if len(self._kept) > 4096:
                self._kept.clear()
            self._kept[key] = self._values(steps, now)
        return self._kept[key]

    def _values(self, steps: Sequence[Step], now: int) -> Worth:
        ranges = [(now, now)]
        for step in steps:
            low, high = ranges[-1]
            low -= max(turn.losses - turn.gains for turn in step.turns)
            high += max(turn.gains - turn.losses for turn in step.turns)
            if len(step.turns) > 1:
                deepest = max(REACH, *(turn.losses for turn in step.turns))
                low, high = max(low, now - deepest), min(high, now + REACH)
            low, high = max(0, min(low, self._max_nodes)), max(0, min(high, self._max_nodes))
            ranges.append((min(low, high), high))
        low, high = ranges[-1]
        ready = np.zeros((high - low + 1, len(self.layouts)))
        value = (ready, ready)
        for number in range(len(steps) - 1, -1, -1):
            may_owe = number == 0 or steps[number - 1].span_s < self._longest_s + OWED_S
            value = self._before(steps[number], ranges[number], ranges[number + 1], value, may_owe)
        return Worth(value[0][0], value[1][0])

    def path_values(self, steps: Sequence[Step], counts: Sequence[int]) -> list[Worth]:
        """For sure steps: what each layout is worth before each of them; after the last, nothing."""
        ready = np.zeros((1, len(self.layouts)))
        value = (ready, ready)
        found = [Worth(ready[0], ready[0])]
        for step, count in zip(reversed(steps), reversed(counts), strict=True):
            after = count - step.turns[0].losses + step.turns[0].gains
            value = self._before(step, (count, count), (after, after), value, True)
            found.append(Worth(value[0][0], value[1][0]))
        return found[::-1]

    def _before(
        self,
        step: Step,
        counts: tuple[int, int],
        after: tuple[int, int],
        value: tuple[Vector, Vector],
        may_owe: bool,
    ) -> tuple[Vector, Vector]:
        """One step back: rows are availability (from `counts` or `after`), columns layouts.

        Of the two tables the first is for a layout that trains, the second for one that still has OWED_S of a
        change before it; that one is only made if it `may_owe`.
        """
        if not self.layouts:
            nothing = np.zeros((counts[1] - counts[0] + 1, 0))
            return nothing, nothing
        before = np.arange(counts[0], counts[1] + 1)
        fits = np.arange(after[0], after[1] + 1)[:, None] >= self._needs
        ready = np.where(fits, value[0], -np.inf)
        drag = value[1] - value[0]  # what owing OWED_S is worth: nothing or less
        stuck = np.asarray(~fits.any(axis=1))
        stuck_worth = self._stuck_worth(value)[stuck]
        then = np.stack([before - np.minimum(turn.losses, before) + turn.gains for turn in step.turns])
        then = np.clip(then, *after) - after[0]
        odds = self._odds(step.turns, counts)
        tables = []
        for owing in (False, True) if may_owe else (False,):
            total = np.zeros((len(before), len(self.layouts)))
            for lost, (number, chances) in enumerate(odds):
                best = self._best(lost, step.span_s, ready, drag, owing)
                best[stuck] = stuck_worth
                total += (chances * best[then[number]]).sum(axis=0)
            tables.append(total)
        return tables[0], tables[-1]

    def _odds(self, turns: tuple[Turn, ...], counts: tuple[int, int]) -> list[tuple[list[int], Vector]]:
        """By class: the turns that can bring it about, and how likely each does, by count and layout."""
        key = (turns, counts)
        if key not in self._known_odds:
            if len(self._known_odds) > 256:
                self._known_odds.clear()
            before = range(counts[0], counts[1] + 1)
            laws = [self._law(turn.losses) for turn in turns]
            for law in laws:
                law.fill(before)
            found = []
            for lost in range(max(len(law.chances) for law in laws)):
                able = [number for number, law in enumerate(laws) if lost < len(law.chances)]
                rows = slice(counts[0], counts[1] + 1)
                chances = [turns[number].probability * laws[number].chances[lost, rows] for number in able]
                found.append((able, np.stack(chances)))
            self._known_odds[key] = found
        return self._known_odds[key]

    def _stuck_worth(self, value: tuple[Vector, Vector]) -> Vector:
        """What a step is worth in which nothing can train: time passes, and then there is a start to pay."""
        return value[1]

    def _best(self, lost: int, span_s: float, ready: Vector, drag: Vector, owing: bool) -> Vector:
        """By availability and layout left: the samples of a step and after it, by the best layout taken."""
        gain, owed = self._gain(lost, span_s, owing)
        if owed is None:
            return (gain + ready[:, None, :]).max(axis=2)  # type: ignore[no-any-return]
        return (gain + ready[:, None, :] + owed * drag[:, None, :]).max(axis=2)  # type: ignore[no-any-return]

    def _gain(self, lost: int, span_s: float, owing: bool) -> tuple[Vector, Vector | None]:
        """By layout left (row) and layout taken (column): the samples of a step, and what is owed after it.

        What is owed is in units of OWED_S; None where nothing is. With `owing`, OWED_S of an earlier change
        come before all else: one that is given up has to be begun again, which takes as long at least.
        """
        key = (lost, span_s, owing)
        if key not in self._gains:
            if len(self._gains) > 256:
                self._gains.clear()
            prepare_s, pause_s, running = self._price(lost)
            total_s = prepare_s + pause_s
            if owing:
                running = np.zeros_like(running)
                total_s = total_s + OWED_S
            gain = np.minimum(prepare_s, span_s) * running[:, None] + self.rate * np.maximum(
                span_s - total_s, 0.0
            )
            owed = np.maximum(total_s - span_s, 0.0) / OWED_S
            self._gains[key] = gain, (owed if owed.any() else None)
        return self._gains[key]

    @cached_property
    def _longest_s(self) -> float:
        """How long the dearest change takes."""
        deepest = max((layout.pipelines for layout in self.layouts), default=0)
        prices = [self._price(lost) for lost in range(min(deepest, MOST_CLASSES) + 1)]
        return max((float((prepare_s + pause_s).max()) for prepare_s, pause_s, _ in prices), default=0.0)

    def _price(self, lost: int) -> tuple[Vector, Vector, Vector]:
        """Seconds of preparation and pause from each layout to each, and what the first trains meanwhile."""
        if lost not in self._prices:
            size = len(self.layouts)
            prepare_s, pause_s = np.zeros((size, size)), np.zeros((size, size))
            running = self.rate.copy() if not lost or self._noticed else np.zeros(size)
            for row, before in enumerate(self.layouts):
                for column, after in enumerate(self.layouts):
                    cost = self.cost(before, after, min(lost, before.pipelines))
                    prepare_s[row, column], pause_s[row, column] = cost.prepare_s, cost.pause_s
            self._prices[lost] = (prepare_s, pause_s, running)
        return self._prices[lost]

    def cost(self, before: Layout, after: Layout, lost: int) -> Cost:
        """What going from one layout to another costs when the hardest-hit stage lost `lost` replicas."""
        if before == after and not lost:
            return NO_COST
        hit = min(before.stages, self._gpus)  # the stages of an instance lose their replicas together
        survivors = [before.pipelines - lost] * hit + [before.pipelines] * (before.stages - hit)
        noticed = self._noticed or not lost
        return self._priced(sketch_change(self._profile, before, survivors, lost * hit, after, noticed))

    def _priced(self, change: Change) -> Cost:
        return self._costs.cost(self._profile, change)

    def _law(self, losses: int) -> _Law:
        if losses not in self._laws:
            self._laws[losses] = _Law(self.layouts, losses, self._max_nodes, self._gpus)
        return self._laws[losses]


class _Law:
    """For a number of losses: `chances[lost][count]` is, by layout, the probability of each class.

    The class is how many replicas the hardest-hit stage loses, from 0 (no member is hit at all).
    """

    def __init__(self, layouts: Sequence[Layout], losses: int, max_nodes: int, gpus: int) -> None:
        self._layouts, self._losses, self._gpus = layouts, losses, gpus
        deepest = max((layout.pipelines for layout in layouts), default=0)
        classes = min(losses * gpus, MOST_CLASSES, deepest) + 1
        self.chances = np.zeros((classes, max_nodes + 1, len(layouts)))
        self._filled = [False] * (max_nodes + 1)

    def fill(self, counts: Sequence[int]) -> None:
        """Make sure that the rows of these availabilities are there."""
        for count in counts:
            if not self._filled[count]:
                self._filled[count] = True
                self._fill(count, min(self._losses, count))

    def _fill(self, count: int, losses: int) -> None:
        total = comb(count, losses)
        last = len(self.chances) - 1
        for number, layout in enumerate(self._layouts):
            spares = count - instances_needed(layout, self._gpus)
            if spares < 0:
                self.chances[0, count, number] = 1.0  # such a layout is never running: nobody asks
                continue
            below = 0.0
            for lost in range(last + 1):
                keep = layout.pipelines - lost
                if keep <= 0 or lost == last:
                    self.chances[lost, count, number] = 1.0 - below
                    break
                if self._gpus == 1:
                    ways = stage_ways(layout.pipelines, layout.stages, keep, losses)
                else:
                    ways = chosen_placement(layout, self._gpus).kept_ways(keep, losses)
                hit = sum(
                    way * comb(spares, losses - gone)
                    for gone, way in enumerate(ways)
                    if way and losses - gone <= spares
                )
                kept = max(below, hit / total)  # a bound may lie below what is exact with fewer losses
                self.chances[lost, count, number] = kept - below
                below = kept
