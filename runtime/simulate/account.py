"""The books of a replay: what every instance-second was spent on, and the samples it brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from runtime.planning.types import Layout

EFFECTIVE, MIGRATING, CHECKPOINTING = "effective", "migrating", "checkpointing"
REDUNDANT, LOST, IDLE = "redundant", "lost", "idle"
CATEGORIES = (EFFECTIVE, MIGRATING, CHECKPOINTING, REDUNDANT, LOST, IDLE)


@dataclass(frozen=True)
class Segment:
    """A stretch of time during which nothing changed. `uses`: how many of the `held` instances did what."""

    start_s: float
    end_s: float
    held: int
    layout: Layout | None
    samples_per_s: float
    uses: Mapping[str, float]

    @property
    def samples(self) -> float:
        """Samples committed in it."""
        return self.samples_per_s * (self.end_s - self.start_s)


@dataclass
class Account:
    """Collects segments; whatever no use is named for was idle."""

    segments: list[Segment] = field(default_factory=list)

    def spend(
        self,
        start_s: float,
        end_s: float,
        held: int,
        layout: Layout | None = None,
        samples_per_s: float = 0.0,
        uses: Mapping[str, float] | None = None,
    ) -> None:
        """Book a stretch of time; an empty one is left out.

        Raises:
            ValueError: more instances are used than held.
        """
        if end_s <= start_s:
            return
        uses = dict(uses or {})
        used = sum(uses.values())
        if used > held + 1e-9:
            raise ValueError(f"{used} instances used of {held} held at {start_s:g} s")
        uses[IDLE] = uses.get(IDLE, 0.0) + held - used
        self.segments.append(Segment(start_s, end_s, held, layout, samples_per_s, uses))

    @property
    def samples(self) -> float:
        """Samples committed in all."""
        return sum(segment.samples for segment in self.segments)

    def hours(self) -> dict[str, float]:
        """Instance-hours by category; they add up to the hours held."""
        totals = dict.fromkeys(CATEGORIES, 0.0)
        for segment in self.segments:
            for use, instances in segment.uses.items():
                totals[use] += instances * (segment.end_s - segment.start_s) / 3600
        return totals

    def layouts(self) -> tuple[tuple[float, int, int], ...]:
        """(minute, pipelines, stages) at every change of layout; 0 x 0 where nothing could run."""
        changes: list[tuple[float, int, int]] = []
        for segment in self.segments:
            now = (segment.layout.pipelines, segment.layout.stages) if segment.layout else (0, 0)
            if not changes or changes[-1][1:] != now:
                changes.append((round(segment.start_s / 60, 4), *now))
        return tuple(changes)
