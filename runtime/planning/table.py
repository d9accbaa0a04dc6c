"""A TOML table that knows where it came from, so that every complaint names file and key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from runtime.planning.errors import InputError


class Table:
    """One TOML table; whoever reads it asks for keys one by one, and for `no_more` at the end."""

    def __init__(self, data: Mapping[str, Any], source: str, where: str = "") -> None:
        self.data = data
        self.source = source
        self.where = where
        self.used: set[str] = set()

    def key(self, name: str) -> str:
        return f"{self.where}.{name}" if self.where else name

    def fail(self, name: str, problem: str) -> InputError:
        return InputError(f"{self.source}: {self.key(name)}: {problem}")

    def table(self, name: str, required: bool = True) -> Table | None:
        self.used.add(name)
        value = self.data.get(name)
        if value is None:
            if required:
                raise self.fail(name, "this table is missing")
            return None
        if not isinstance(value, Mapping):
            raise self.fail(name, "must be a table")
        return Table(value, self.source, self.key(name))

    def need(self, name: str) -> Table:
        table = self.table(name)
        assert table is not None
        return table

    def text(self, name: str, default: str | None = None) -> str:
        self.used.add(name)
        value = self.data.get(name, default)
        if value is None:
            raise self.fail(name, "is missing; give a text")
        if not isinstance(value, str) or not value:
            raise self.fail(name, f"must be a text, not {value!r}")
        return value

    def number(
        self, name: str, default: float | None = None, low: float = 0.0, above: float | None = None
    ) -> float:
        self.used.add(name)
        value = self.data.get(name, default)
        if value is None:
            raise self.fail(name, "is missing; give a number")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fail(name, f"must be a number, not {value!r}")
        if value < low or (above is not None and value <= above):
            bound = f"above {above:g}" if above is not None else f"at least {low:g}"
            raise self.fail(name, f"must be {bound}, not {value!r}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        self.used.add(name)
        value = self.data.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, f"must be true or false, not {value!r}")
        return value

    def count(self, name: str, default: int | None = None, low: int = 1) -> int:
        value = self.number(name, default, low=low)
        if value != int(value):
            raise self.fail(name, f"must be a whole number, not {value!r}")
        return int(value)

    def no_more(self) -> None:
        unknown = sorted(set(self.data) - self.used)
        if unknown:
            raise self.fail(unknown[0], f"unknown key; known here: {', '.join(sorted(self.used))}")
