"""The picture of a job: its grid of pipelines and stages, fleet, loss, money, and what happened last."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from parcae_cli.job_status import JobStatus, age_s
from parcae_cli.render.charts import bars, braille_curve, progress_bar
from parcae_cli.render.fleet import COMING, GONE, grid_lines
from parcae_cli.render.output import bytes_text, duration_text, usd_text

JOB_COLOURS = {
    "running": "green",
    "done": "green",
    "waiting": "yellow",
    "starting": "cyan",
    "stopping": "yellow",
    "failed": "red",
    "interrupted": "yellow",
    "abandoned": "red",
}
EVENT_COLOURS = {
    "joined": "green",
    "noticed": "yellow",
    "lost": "red",
    "migration": "magenta",
    "plan": "magenta",
    "waiting": "yellow",
    "rollback": "red",
    "started": "green",
    "error": "red",
}
SECONDS_FROM = 100  # columns from which on a change shows seconds beside bytes
WIDE = 108  # from this many columns on, two panels stand side by side
AVAILABILITY_LINES = 7


def status_view(
    status: JobStatus, width: int, height: int | None = None, now_s: float | None = None
) -> Group:
    """The whole picture for a console of this size; `height` None: as long as it needs to be."""
    now_s = time.time() if now_s is None else now_s
    room = 99 if height is None else height
    parts: list[RenderableType] = [_headline(status, width, now_s), _progress(status, width)]
    parts += _warnings(status, now_s)
    inner = (width // 2 if width >= WIDE else width) - 4
    title = "result" if status.ended else "pipelines x stages"
    lines = _result(status) if status.ended else grid_lines(status, inner, now_s)
    if width >= WIDE:
        if not status.ended and len(lines) + (status.layout or (0, 0))[0] <= AVAILABILITY_LINES + 4:
            lines = grid_lines(status, inner, now_s, airy=True)
        half = Table.grid(expand=True)
        half.add_column(ratio=1)
        half.add_column(ratio=1)
        lines_high = max(len(lines) + 2, AVAILABILITY_LINES + 6)
        right = Group(_availability(status, inner), _loss(status, inner, lines_high - AVAILABILITY_LINES - 2))
        half.add_row(_panel(Group(*lines), title, lines_high), right)
        parts.append(half)
        room -= lines_high + 3
    else:
        parts += [_panel(Group(*lines), title), _availability(status, inner), _loss(status, inner, 5)]
        room -= len(lines) + 2 + AVAILABILITY_LINES + 7 + 3
    parts.append(_numbers(status, width))
    parts += market_lines(status, width)
    shown = max(2, min(5, (room - 8) // 2))
    if status.migrations:
        parts.append(_migrations(status, shown, width))
        room -= min(shown, len(status.migrations)) + 2
    parts.append(_events(status, max(3, min(10, room - 3))))
    return Group(*parts)


def _headline(status: JobStatus, width: int, now_s: float) -> RenderableType:
    state = shown_state(status)
    colour = JOB_COLOURS.get(state, "white")
    left = Text.assemble((f" {status.job} ", "bold reverse"), "  ", ("● ", colour), (state, f"bold {colour}"))
    model = str(status.spec.get("model", "")).rpartition("/")[2]
    for fact in (model, status.spec.get("policy"), status.spec.get("cloud")):
        if fact:
            left.append("   ").append(str(fact), "dim" if fact != model else "")
    if status.layout and not status.ended:
        left.append("   ").append(f"{status.layout[0]}x{status.layout[1]}", "bold")
        left.append(f"  generation {status.generation}", "dim")
    lasted = duration_text(age_s(status.created_s, status.ended_s or now_s))
    line = Table.grid(expand=True)
    line.add_column()
    line.add_column(justify="right")
    line.add_row(left, Text(f"{lasted} ", "dim"))
    return Padding(line, (0, 0, 1, 0))


def shown_state(status: JobStatus) -> str:
    """The job's state in one word; `abandoned` when its launcher died without saying how it ended."""
    return status.state if status.ended or status.launcher_alive else "abandoned"


def _progress(status: JobStatus, width: int) -> RenderableType:
    total = max(status.steps, status.step, 1)
    label = f" step {status.step:,} of {status.steps:,} "
    part = status.step / total
    tail = f" {part:4.0%}"
    pace = status.curve.seconds_per_step
    if pace and status.launcher_alive and status.step < status.steps:
        tail += f"  about {duration_text((status.steps - status.step) * pace)} to go"
    done, open_ = progress_bar(part, max(10, width - len(label) - len(tail) - 1))
    return Text.assemble((label, "bold"), (done, "green"), (open_, "bright_black"), tail)


def _warnings(status: JobStatus, now_s: float) -> list[RenderableType]:
    lines: list[RenderableType] = []
    state = shown_state(status)
    if state == "abandoned":
        job = status.job
        lines.append(Text(f" Its launcher died. Go on: parcae resume {job}; end: parcae down {job}", "red"))
    elif state == "waiting":
        lines.append(Text(f" Waiting: {status.why or 'too few nodes'}", "yellow"))
    elif state in ("failed", "interrupted") and status.why:
        lines.append(Text(f" {status.why}", JOB_COLOURS[state]))
    elif not status.ended and status.updated_s and now_s - status.updated_s > 5:
        silence = duration_text(age_s(status.updated_s, now_s))
        lines.append(Text(f" No news from the job for {silence}.", "yellow"))
    return lines


def _panel(body: RenderableType, title: str, height: int | None = None) -> RenderableType:
    return Panel(
        body, title=title, title_align="left", border_style="bright_black", box=box.ROUNDED, height=height
    )


# ---- charts --------------------------------------------------------------------------------------------


def _availability(status: JobStatus, inner: int) -> RenderableType:
    ahead = [] if status.ended else list(status.forecast)[: inner // 3]
    top = max([*status.availability, *ahead, 1])
    axis = len(f"{top:.0f}") + 1
    room = inner - axis - 1
    # A short history is drawn broader: every interval gets as many columns as fit, up to four.
    broad = max(1, min(4, room // max(1, len(status.availability) + len(ahead))))
    back = list(status.availability)[-(room // broad - len(ahead)) :]
    height = AVAILABILITY_LINES - 3
    history = bars([value for value in back for _ in range(broad)], top, height)
    forecast = bars([value for value in ahead for _ in range(broad)], top, height)
    lines = []
    for index in range(height):
        number = {0: f"{top:.0f}", height - 1: "0"}.get(index, "")
        lines.append(
            Text.assemble(
                (f"{number:>{axis - 1}}┤" if number else " " * (axis - 1) + "│", "dim"),
                (history[index], "cyan"),
                ("│" if ahead else "", "dim"),
                (forecast[index], "magenta"),
            )
        )
    start = f"-{_span_text(len(back) * status.availability_interval_s)}"
    end = f"+{_span_text(len(ahead) * status.availability_interval_s)}"
    columns = len(back) * broad
    under = start if columns > len(start) + 4 else ""
    under = f"{under}{'now' if columns > 3 else '':>{max(0, columns - len(under))}}"
    if len(ahead) * broad > len(end) + 1:
        under += f"{end:>{len(ahead) * broad + 1}}"
    lines.append(Text(" " * axis + under, "dim"))
    held = sum(node.state not in GONE and node.state not in COMING for node in status.nodes)
    now = "nodes held" if status.ended else f"{held} of {status.wanted} nodes"
    if not status.availability:
        return _panel(Text("no history yet" + "\n" * (AVAILABILITY_LINES - 3), "dim"), "availability")
    title = f"availability  [cyan]{now}[/]" + ("  [magenta]forecast[/]" if ahead else "")
    return _panel(Group(*lines), title)


def _span_text(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _loss(status: JobStatus, inner: int, height: int) -> RenderableType:
    losses = [loss for loss in status.curve.losses if math.isfinite(loss)]
    height = max(3, min(height, 10))
    title = "loss" + (f"  [green]{status.loss:.4f}[/]" if status.loss is not None else "")
    if status.eval_loss is not None:
        title += f"  [cyan]{status.eval_loss:.4f} held out[/]"
    if len(losses) < 2:
        return _panel(Text("no curve yet" + "\n" * (height - 1), "dim"), title)
    high, low = f"{max(losses):.2f}", f"{min(losses):.2f}"
    axis = max(len(high), len(low))
    labels = [high, *[""] * (height - 2), low]
    curve = braille_curve(losses, inner - axis - 1, height)
    return _panel(
        Group(
            *(
                Text.assemble((f"{label:>{axis}}{'┤' if label else '│'}", "dim"), (line, "green"))
                for label, line in zip(labels, curve, strict=True)
            )
        ),
        title,
    )


# ---- numbers and what happened -------------------------------------------------------------------------


def _result(status: JobStatus) -> list[RenderableType]:
    result = status.result or {}
    rows = [("state", shown_state(status)), ("steps", f"{status.step:,} of {status.steps:,}")]
    if result:
        rows += [
            ("samples", f"{result.get('samples', 0):,} trained"),
            ("", f"{result.get('samples_lost', 0)} lost, {result.get('samples_repeated', 0)} trained twice"),
        ]
        if result.get("final_loss") is not None:
            rows.append(("loss", f"{result['final_loss']:.4f}"))
        if result.get("weights_sha256"):
            rows.append(("weights", f"sha256 {result['weights_sha256'][:16]}"))
        if result.get("wall_s"):
            rows.append(("took", duration_text(result["wall_s"])))
    rows.append(("changes", str(len(status.migrations))))
    return [Text.assemble((f"{name:<9}", "dim"), value) for name, value in rows]


def _numbers(status: JobStatus, width: int) -> RenderableType:
    saved = 1 - status.usd / status.usd_on_demand if status.usd_on_demand > 0 else None
    facts = [
        (f"{status.samples_per_s:,.1f}", "samples/s"),
        (f"{status.liveput:,.1f}", "liveput"),
        (usd_text(status.usd), "spent"),
        (f"{usd_text(status.usd_per_hour)}/h", "now"),
        (usd_text(status.usd_on_demand), "on demand"),
        ("-" if saved is None else f"{saved:.0%}", "saved"),
    ]
    if status.ended:
        facts = facts[2:3] + facts[4:]
    elif status.backup_step is not None and width >= 90:
        share = status.backup.get("share_of_step_time", 0.0)
        facts.append((f"step {status.backup_step:,}", f"backup, {share:.1%} of time"))
    table = Table.grid(expand=True)
    for _ in facts:
        table.add_column(justify="center")
    table.add_row(*(Text(value, "bold") for value, _ in facts))
    table.add_row(*(Text(name, "dim") for _, name in facts))
    return table


def market_lines(status: JobStatus, width: int) -> list[RenderableType]:
    """What the cloud says of its pools: price, refused launches, placement scores; nothing elsewhere."""
    market, facts = status.market, []
    if price := market.get("spot_usd_per_hour"):
        change = market.get("price_change")
        since = f" ({change:+.0%} since the start)" if change is not None and abs(change) >= 0.005 else ""
        facts.append(f"spot from {usd_text(price)}/h{since}")
    if tried := market.get("launches_tried"):
        facts.append(f"{market.get('launches_refused', 0):,} of {tried:,} launches refused in the last hour")
    scores = sorted((market.get("scores") or {}).items(), key=lambda one: -one[1])
    if scores:
        shown = scores[: max(1, (width - 20) // 30)]
        more = f" and {len(scores) - len(shown)} more" if len(scores) > len(shown) else ""
        facts.append("placement score " + ", ".join(f"{score:g} {pool}" for pool, score in shown) + more)
    if not facts:
        return []
    return [Text.assemble((" market  ", "dim"), "   ".join(facts))]


def _migrations(status: JobStatus, count: int, width: int) -> RenderableType:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 1), pad_edge=False, expand=True)
    for name in ("gen", "step", "change", "from", "to", "pause", "ahead", "at switch"):
        table.add_column(name, justify="left" if name in ("change", "from", "to") else "right")
    if width >= 90:
        table.add_column("nodes", ratio=1, no_wrap=True)
    for record in status.migrations[-count:]:
        kind = str(record.get("kind", "")).replace("_", "-")
        ahead, moved = record.get("bytes_ahead") or 0, record.get("bytes_moved") or 0
        noticed = "" if record.get("noticed", True) else " (no warning)"
        cells: list[RenderableType] = [
            str(record.get("generation", "")),
            f"{record.get('step', 0):,}",
            Text(kind + noticed, "red" if kind == "rollback" else "magenta"),
            _layout_text(record.get("from")),
            _layout_text(record.get("to")),
            duration_text(record.get("pause_s") or 0.0),
            _moved_text(ahead, record.get("copy_s") if width >= SECONDS_FROM else None),
            _moved_text(moved - ahead, record.get("fetch_s") if width >= SECONDS_FROM else None),
        ]
        if width >= 90:
            gone = [f"[red]-{name}[/]" for name in record.get("nodes_lost") or ()]
            come = [f"[green]+{name}[/]" for name in record.get("nodes_joined") or ()]
            cells.append(" ".join([*gone, *come]))
        table.add_row(*cells)
    return Group(_title(f"changes ({len(status.migrations)})"), table)


def _moved_text(size_bytes: int, seconds: float | None) -> str:
    if not size_bytes:
        return "-"
    return bytes_text(size_bytes) + (f" in {duration_text(seconds)}" if seconds else "")


def _layout_text(layout: Any) -> str:
    if isinstance(layout, Mapping):
        return f"{layout['pipelines']}x{layout['stages']}"
    return "-" if layout is None else str(layout)


def _title(text: str) -> RenderableType:
    return Rule(f"[dim]{text}[/]", align="left", style="bright_black", characters="─")


def _events(status: JobStatus, count: int) -> RenderableType:
    table = Table.grid(expand=True, padding=(0, 2, 0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    for event in status.last_events[-count:]:
        when = time.strftime("%H:%M:%S", time.localtime(event.time_s))
        text = Text(event.text, EVENT_COLOURS.get(event.kind, ""), overflow="ellipsis", no_wrap=True)
        if event.why:
            text.append(f"  {event.why}", "not bold bright_black")
        table.add_row(when, text)
    if not status.last_events:
        table.add_row("", Text("nothing has happened yet", "dim"))
    return Group(_title("events"), table)
