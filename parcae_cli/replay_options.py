"""`parcae replay`'s options that stand for many replays: seeds, and values to sweep."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from parcae_cli.errors import UsageError
from runtime.simulate.sweep import KEYS

MOST_SEEDS = 1000


def seeds_of(text: str, count: int | None) -> tuple[int, ...]:
    """The seeds that `--seed` (`3` or `1..5`) and `--seeds` (how many, from the first on) ask for.

    Raises:
        UsageError: neither a number nor a range, an empty range, or both options at odds.
    """
    found = re.fullmatch(r"\s*(\d+)\s*(?:\.\.\s*(\d+)\s*)?", text)
    if found is None:
        raise UsageError(f"--seed {text}: must be a number from 0 on, or a range like 1..5")
    first = int(found[1])
    last = int(found[2]) if found[2] else first
    if last < first:
        raise UsageError(f"--seed {text}: the range is empty", f"Give {last}..{first}")
    if count is not None:
        if found[2]:
            raise UsageError("--seed is a range and --seeds counts", "Give one of them")
        last = first + count - 1
    if last - first >= MOST_SEEDS:
        raise UsageError(f"--seed: {last - first + 1} seeds are more than {MOST_SEEDS}")
    return tuple(range(first, last + 1))


def sweep_of(texts: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The values of each key in `KEY=V1,V2,..`, in the order given.

    Raises:
        UsageError: another form, an unknown key, a key twice, or a value that is no number.
    """
    swept: dict[str, tuple[float, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        key = key.strip()
        if not equals or not values.strip():
            raise UsageError(f"--sweep {text}: must be KEY=V1,V2,.. with KEY one of {', '.join(KEYS)}")
        if key not in KEYS:
            raise UsageError(f"--sweep {text}: no key {key!r}; there are {', '.join(KEYS)}")
        if key in swept:
            raise UsageError(f"--sweep {text}: {key} is given twice", f"Write {key}=V1,V2,.. once")
        swept[key] = tuple(dict.fromkeys(_number(text, value) for value in values.split(",")))
    return swept


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"--sweep {option}: {text.strip()!r} is not a number")
    return value
