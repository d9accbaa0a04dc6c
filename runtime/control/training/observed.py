"""What steps really take, by layout: a running job corrects the profile that its plans are made with."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import replace

from runtime.planning.controller import ControllerConfig
from runtime.planning.profile import Profile
from runtime.planning.types import Layout

LEAST_STEPS = 10  # of a layout before its time is believed
RECENT_STEPS = 50
WORTH_TELLING = 0.1  # relative: a smaller difference changes no plan and would only make new tables


class StepTimes:
    """Times of ordinary steps, in seconds, beside what the profile expected."""

    def __init__(self, profile: Profile | None) -> None:
        """`profile` is what was planned with at first; None: nothing is learned."""
        self._profile = profile
        self._seen: dict[Layout, deque[float]] = {}

    def note(self, layout: Layout, step_s: float) -> None:
        """A step without a migration took so long."""
        if self._profile is not None:
            self._seen.setdefault(layout, deque(maxlen=RECENT_STEPS)).append(step_s)

    def corrected(self, config: ControllerConfig) -> ControllerConfig:
        """The configuration with a profile of what was seen; the same one where that is no news."""
        known = {
            layout: statistics.median(times)
            for layout, times in self._seen.items()
            if len(times) >= LEAST_STEPS and layout in config.profile.iteration_s
        }
        used = config.profile.iteration_s
        news = any(abs(seconds / used[layout] - 1) > WORTH_TELLING for layout, seconds in known.items())
        if self._profile is None or not news:
            return config
        return replace(config, profile=self._profile.corrected(known))
