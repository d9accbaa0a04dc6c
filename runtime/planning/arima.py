"""The paper's forecaster: ARIMA(1, 1, 0) over the last intervals, with guards against what it cannot know."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from runtime.planning.forecast import Forecast, path_forecast


@dataclass(frozen=True)
class Arima:
    """ARIMA(1, 1, 0), sure of itself. The guards are those of the paper's artifact.

    It looks at `history` intervals; too few, or all alike, and it says that nothing changes. No forecast
    leaves `lower`..`upper` instances (None: no bound), or moves more than `most_change` from the first
    interval's.
    """

    history: int = 12
    lower: int | None = None
    upper: int | None = None
    most_change: int = 3
    name: str = "arima"

    def forecast(self, history: Sequence[int], horizon: int, now_s: float) -> Forecast:
        """See `Forecaster`."""
        recent = tuple(history[-self.history :])
        now = recent[-1] if recent else 0
        path = _fit(recent, horizon) if len(recent) >= 4 and len(set(recent)) > 1 else None
        if path is None:
            return path_forecast(now, [now] * horizon)
        guarded: list[int] = []
        for value in path:
            number = round(value)
            if guarded:
                first = guarded[0]
                number = max(first - self.most_change, min(first + self.most_change, number))
            if self.lower is not None:
                number = max(min(self.lower, now), number)
            if self.upper is not None:
                number = min(max(self.upper, now), number)
            guarded.append(max(0, number))
        return path_forecast(now, guarded)


@lru_cache(maxsize=4096)
def _fit(recent: tuple[int, ...], horizon: int) -> tuple[float, ...] | None:
    """The forecast of statsmodels' ARIMA(1, 1, 0), or None where it cannot be fitted."""
    import numpy as np
    from statsmodels.tsa.arima.model import ARIMA

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fitted = ARIMA(np.asarray(recent, dtype=float), order=(1, 1, 0)).fit()
            path = tuple(float(value) for value in fitted.forecast(horizon))
        except (ValueError, np.linalg.LinAlgError):
            return None
    return path if all(abs(value) < 1e9 for value in path) else None
