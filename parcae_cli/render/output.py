"""The two ways a result leaves the program: one JSON object, or text on a console."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_json(result: Mapping[str, Any]) -> None:
    """Print exactly one JSON object on stdout. What is not finite becomes null: JSON has no infinity."""
    json.dump(_finite(result), sys.stdout, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value


def text_console(stderr: bool = False) -> Console:
    """A console as wide as the terminal; 100 columns where there is none, so that pipes are stable."""
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:
        console = Console(stderr=stderr, highlight=False, width=100)
    return console


def bytes_text(count: float) -> str:
    """A number of bytes for people: `3.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration_text(seconds: float) -> str:
    """A duration for people: `420 ms`, `12.5 s`, `3 min 20 s`, `4 h 05 min`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def usd_text(usd: float) -> str:
    """An amount for people, with as many digits as it needs: `$1,204`, `$3.21`, `$0.0042`."""
    if usd >= 1000:
        return f"${usd:,.0f}"
    if usd >= 0.995 or usd == 0:
        return f"${usd:.2f}"
    return f"${usd:.4f}"
