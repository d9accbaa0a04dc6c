"""Every forecaster by name, and the one that is taken when nobody names one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from runtime.planning.arima import Arima
from runtime.planning.errors import InputError
from runtime.planning.forecast import Forecaster, LastValue
from runtime.planning.hazard import Hazard
from runtime.planning.prior import PriorRates

DEFAULT = "hazard"
FORECASTERS: dict[str, Callable[[], Forecaster]] = {
    "last-value": LastValue,
    "arima": Arima,
    "hazard": Hazard,
}


def forecaster_named(name: str, prior: PriorRates | None = None, interval_s: float = 60.0) -> Forecaster:
    """The forecaster of this name; "default" is the one that does best over many traces.

    `prior` is heeded by those that have a use for it; `interval_s` is in the cloud's time.

    Raises:
        InputError: there is none of this name.
    """
    make = FORECASTERS.get(DEFAULT if name == "default" else name)
    if make is None:
        raise InputError(f"no forecaster {name!r}; there are {', '.join(FORECASTERS)}")
    made = make()
    if prior is not None and isinstance(made, Hazard):
        return replace(made, prior=prior, interval_s=interval_s)
    return made
