"""Every forecaster by name, and the one that is taken when nobody names one."""

from __future__ import annotations

from collections.abc import Callable

from runtime.planning.arima import Arima
from runtime.planning.errors import InputError
from runtime.planning.forecast import Forecaster, Hazard, LastValue

DEFAULT = "hazard"
FORECASTERS: dict[str, Callable[[], Forecaster]] = {
    "last-value": LastValue,
    "arima": Arima,
    "hazard": Hazard,
}


def forecaster_named(name: str) -> Forecaster:
    """The forecaster of this name; "default" is the one that does best over many traces.

    Raises:
        InputError: there is none of this name.
    """
    make = FORECASTERS.get(DEFAULT if name == "default" else name)
    if make is None:
        raise InputError(f"no forecaster {name!r}; there are {', '.join(FORECASTERS)}")
    return make()
