"""What `parcae launch` shows while its job runs, on stderr: every event as a line, and how far it is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from parcae_cli.render.charts import progress_bar
from parcae_cli.render.output import text_console
from parcae_cli.render.status import EVENT_COLOURS
from runtime.control.job.journal import Journal

# The job runs in the same process: looking at it must cost next to nothing.
PERIOD_S = 0.5


@contextmanager
def shown_progress(home: Path, job: str) -> Iterator[None]:
    """Show the job's progress on stderr while the body runs; on a terminal with a moving last line."""
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(home, job, over), name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(timeout=5)


def _watch(home: Path, job: str, over: threading.Event) -> None:
    console = text_console(stderr=True)
    events = home / "jobs" / job / "events.jsonl"
    offset = 0
    if not console.is_terminal:
        while not over.wait(PERIOD_S):
            offset = _print_events(console, events, offset)
        _print_events(console, events, offset)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        journal: Journal | None = None
        while not over.wait(PERIOD_S):
            offset = _print_events(console, events, offset)
            if journal is None and events.exists():
                journal = Journal(home)
            snapshot = journal.read_snapshot(job) if journal else None
            if snapshot:
                live.update(_line(snapshot, console.width), refresh=True)
        _print_events(console, events, offset)
        if journal is not None:
            journal.close()


def _print_events(console: Console, path: Path, offset: int) -> int:
    """Print what was added to the file behind `offset`, and return the new end."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            new = file.read()
    except OSError:  # not there yet, or the home cannot be used: whoever writes it says so
        return offset
    whole = new[: new.rfind(b"\n") + 1]
    for line in whole.splitlines():
        console.print(_event(json.loads(line)), soft_wrap=True)
    return offset + len(whole)


def _event(event: dict[str, Any]) -> Text:
    when = time.strftime("%H:%M:%S", time.localtime(event["time_s"]))
    text = Text.assemble((f"{when}  ", "dim"), (event["text"], EVENT_COLOURS.get(event["kind"], "")))
    if event["why"]:
        text.append(f"  {event['why']}", "bright_black")
    return text


def _line(snapshot: dict[str, Any], width: int) -> Text:
    step, steps = snapshot.get("step") or 0, snapshot.get("steps") or 0
    layout, loss = snapshot.get("layout"), snapshot.get("loss")
    facts = [str(snapshot.get("state", "")), f"step {step:,} of {steps:,}"]
    if loss is not None:
        facts.append(f"loss {loss:.3f}")
    if layout:
        facts.append(f"{layout['pipelines']}x{layout['stages']}")
    facts.append(f"{len(snapshot.get('nodes') or ())} nodes")
    facts.append(f"{snapshot.get('samples_per_s') or 0.0:,.0f} samples/s")
    text = "  ".join(facts)
    done, open_ = progress_bar(step / steps if steps else 0.0, max(5, min(40, width - len(text) - 3)))
    return Text.assemble((done, "green"), (open_, "bright_black"), f"  {text}", no_wrap=True)
