"""Reading a trace from text: every known format, told apart by what it looks like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise

from runtime.planning.errors import InputError
from runtime.planning.trace import ACTIONS, ADD, Trace, TraceEvent, trace_from_counts

HEADER = ("time_s", "event", "instance")
END = "end"  # an optional last row: how long the last state lasted
KNOWN = (
    "known formats: CSV with the header time_s,event,instance; rows time_ms,add|remove,name; "
    "rows time_ms,count; "
    'rows date,time,count; JSON {"metadata": {"gap_seconds": ..}, "data": [..]}'
)
_DATE = re.compile(r"^(\d{4}-\d{2}-\d{2})[,\sT]+(\d{2}:\d{2}(?::\d{2})?)[,;\s]+(\S+)$")

Row = tuple[int, list[str]]  # line number, cells


def parse_trace(text: str, name: str, victims: str = "random", seed: int = 0) -> Trace:
    """The trace in `text`, in any known format; `name` is the file's, for messages and results.

    Formats that only count get made-up names, and `seed` draws which instance is taken ("random" victims) or
    the newest goes first ("newest").

    Raises:
        InputError: unknown format, empty trace, a time that goes backwards, an instance removed that never
        came.
    """
    stripped = text.lstrip("\ufeff \t\r\n")
    if not stripped:
        raise InputError(f"{name}: the trace is empty; {KNOWN}")
    if stripped.startswith(("{", "[")):
        return _json_counts(stripped, name, victims, seed)
    rows = list(_rows(text))
    if not rows:
        raise InputError(f"{name}: the trace is empty; {KNOWN}")
    first_line, first = rows[0]
    if tuple(first) == HEADER:
        if len(rows) == 1:
            raise InputError(f"{name}:{first_line}: the trace is empty: a header and no event")
        return _events(rows[1:], name, 1.0)
    if len(first) == 3 and first[1] in ACTIONS:
        return _events(rows, name, 1000.0)
    if len(first) == 2 and _is_number(first[0]) and _is_number(first[1]):
        return _counts(rows, name, victims, seed, lambda cells: (float(cells[0]) / 1000, cells[1]), 2)
    if _DATE.match(",".join(first)):
        return _dated(rows, name, victims, seed)
    raise InputError(f"{name}:{first_line}: {','.join(first)[:60]!r} is in no known format; {KNOWN}")


def _rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        line = line.strip()
        if line and not line.startswith("#"):
            yield number, [cell.strip() for cell in line.split(",")]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _time(text: str, per_second: float, name: str, line: int) -> float:
    try:
        time_s = float(text) / per_second
    except ValueError:
        raise InputError(f"{name}:{line}: {text!r} is not a time") from None
    if not 0 <= time_s < float("inf"):
        raise InputError(f"{name}:{line}: the time {text} is not a number from 0 on")
    return time_s


def _events(rows: list[Row], name: str, per_second: float) -> Trace:
    events: list[TraceEvent] = []
    present: set[str] = set()
    last_s, end_s, gaps = 0.0, 0.0, []
    for line, cells in rows:
        if len(cells) != 3:
            raise InputError(f"{name}:{line}: three cells needed (time, event, instance), {len(cells)} here")
        time_s = _time(cells[0], per_second, name, line)
        if time_s < last_s:
            raise InputError(
                f"{name}:{line}: the time goes backwards: {time_s:g} s after {last_s:g} s; sort the rows"
            )
        if end_s and time_s > end_s:
            raise InputError(f"{name}:{line}: an event after the end row")
        if time_s > last_s:
            gaps.append(time_s - last_s)
        last_s = time_s
        action, instance = cells[1], cells[2]
        if action == END:
            end_s = time_s
            continue
        if action not in ACTIONS:
            raise InputError(f"{name}:{line}: the event {action!r} is none of {', '.join(ACTIONS)}")
        if not instance:
            raise InputError(f"{name}:{line}: the instance has no name")
        if action == ADD and instance in present:
            raise InputError(f"{name}:{line}: {instance} is added, but it is there already")
        if action != ADD and instance not in present:
            raise InputError(
                f"{name}:{line}: {action} of {instance}, which was never added or is gone already"
            )
        (present.add if action == ADD else present.discard)(instance)
        events.append(TraceEvent(time_s, action, instance))
    if not events:
        raise InputError(f"{name}: the trace is empty: no event")
    return Trace(name, tuple(events), end_s or last_s + _one_more(gaps))


def _one_more(gaps: list[float]) -> float:
    """How long the last state lasts where nobody says: the least gap between times, a minute at most."""
    return min([60.0, *gaps])


def _counts(
    rows: list[Row],
    name: str,
    victims: str,
    seed: int,
    read: Callable[[list[str]], tuple[float, str]],
    width: int,
) -> Trace:
    counts: list[tuple[float, int]] = []
    start_s: float | None = None
    for line, cells in rows:
        if len(cells) != width:
            raise InputError(f"{name}:{line}: {width} cells needed, {len(cells)} here")
        try:
            absolute_s, count_text = read(cells)
        except ValueError:
            raise InputError(f"{name}:{line}: {cells[0]!r} is not a time") from None
        start_s = absolute_s if start_s is None else start_s
        time_s = absolute_s - start_s
        if counts and time_s < counts[-1][0]:
            raise InputError(f"{name}:{line}: the time goes backwards; sort the rows")
        counts.append((time_s, _count(count_text, name, f"{line}")))
    gaps = [after[0] - before[0] for before, after in pairwise(counts)]
    gaps = [gap for gap in gaps if gap > 0]
    return trace_from_counts(name, counts, counts[-1][0] + (min(gaps) if gaps else 60.0), victims, seed)


def _count(text: object, name: str, where: str) -> int:
    try:
        number = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise InputError(f"{name}:{where}: {text!r} is not a number of instances") from None
    if isinstance(text, bool) or number < 0 or number != int(number):
        raise InputError(f"{name}:{where}: {text!r} is not a whole number of instances, from 0 on")
    return int(number)


def _dated(rows: list[Row], name: str, victims: str, seed: int) -> Trace:
    def read(cells: list[str]) -> tuple[float, str]:
        match = _DATE.match(cells[0])
        if match is None:
            raise ValueError(cells[0])
        moment = datetime.fromisoformat(f"{match[1]}T{match[2]}+00:00")
        return moment.timestamp(), match[3]

    joined = [(line, [",".join(cells)]) for line, cells in rows]
    return _counts(joined, name, victims, seed, read, 1)


def _json_counts(text: str, name: str, victims: str, seed: int) -> Trace:
    try:
        table = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}:{error.lineno}: is not JSON: {error.msg}") from None
    if not isinstance(table, dict):
        raise InputError(f"{name}: JSON, but not an object; {KNOWN}")
    metadata = table.get("metadata")
    gap_s = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    if isinstance(gap_s, bool) or not isinstance(gap_s, int | float) or not gap_s > 0:
        raise InputError(f"{name}: metadata.gap_seconds: must be a number above 0, not {gap_s!r}")
    data = table.get("data")
    if not isinstance(data, list):
        raise InputError(f"{name}: data: must be a list of instance counts")
    if not data:
        raise InputError(f"{name}: data: the trace is empty")
    counts = [
        (index * float(gap_s), _count(value, name, f"data[{index}]")) for index, value in enumerate(data)
    ]
    return trace_from_counts(name, counts, len(counts) * float(gap_s), victims, seed)
