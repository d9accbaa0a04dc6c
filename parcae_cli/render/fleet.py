"""The fleet of a job: which node holds which position, and which have none."""

from __future__ import annotations

from textwrap import wrap

from rich.console import RenderableType
from rich.text import Text

from parcae_cli.job_status import JobStatus, NodeStatus

# Of a node's state: the colour of its name, and the colours of the position that it fills.
NODE_COLOURS = {
    "training": ("green", "bold #ffffff on dark_green"),
    "running": ("green", "bold #ffffff on dark_green"),
    "loading": ("cyan", "bold #ffffff on deep_sky_blue4"),
    "joining": ("cyan", "bold #ffffff on deep_sky_blue4"),
    "booting": ("cyan", "bold #ffffff on deep_sky_blue4"),
    "requested": ("bright_black", "white on grey23"),
    "spare": ("bright_blue", "bold #ffffff on navy_blue"),
    "noticed": ("yellow", "bold #101010 on #d7af00"),
    "lost": ("red", "bold #ffffff on dark_red"),
    "terminating": ("red", "bold #ffffff on dark_red"),
    "terminated": ("bright_black", "white on grey23"),
}
GONE = ("terminated", "lost", "terminating")
COMING = ("requested", "booting", "joining", "loading")
MOST_PIPELINES = 16


def grid_lines(status: JobStatus, inner: int, now_s: float, airy: bool = False) -> list[RenderableType]:
    """The positions line by line, then the nodes that have none, then the planner's last reason."""
    nodes = [node for node in status.nodes if node.state not in GONE or node.position is not None]
    lines: list[RenderableType] = []
    if status.layout:
        rows = _positions(status, nodes, inner, now_s)
        lines += [line for row in rows for line in ((row, Text("")) if airy else (row,))]
    else:
        lines.append(Text("no layout yet", "dim"))
    groups: dict[str, list[NodeStatus]] = {}
    for node in nodes:
        if node.position is None:
            label = "coming" if node.state in COMING else "spare" if node.is_spare else node.state
            groups.setdefault(label, []).append(node)
    if groups and not airy:
        lines.append(Text(""))
    lines += [_names(label, named, inner, now_s) for label, named in sorted(groups.items())]
    if status.why:
        why = wrap(f"why: {status.why}", inner, max_lines=2, placeholder=" …")
        lines += [Text(line, "dim", no_wrap=True) for line in why]
    return lines


def _positions(status: JobStatus, nodes: list[NodeStatus], inner: int, now_s: float) -> list[RenderableType]:
    assert status.layout is not None
    pipelines, stages = status.layout
    at = {position: node for node in nodes for position in node.positions or (node.position,)}
    cell = max(1, min(24, (inner - 4) // stages - 1))  # one blank between cells
    head = Text("    ")
    for stage in range(stages):
        cut = status.cuts[stage] if stage < len(status.cuts) else ()
        label = f"stage {stage}" + (f": {_layers(cut)}" if cut else "")
        label = next((x for x in (label, f"stage {stage}", f"s{stage}", str(stage)) if len(x) <= cell), "")
        head.append(f"{label:<{cell}} ", "dim")
    lines: list[RenderableType] = [head]
    for pipeline in range(min(pipelines, MOST_PIPELINES)):
        line = Text(f"p{pipeline:<2} ", "dim")
        for stage in range(stages):
            line.append_text(_cell(at.get((pipeline, stage)), cell, now_s)).append(" ")
        lines.append(line)
    if pipelines > MOST_PIPELINES:
        lines.append(Text(f"    and {pipelines - MOST_PIPELINES} more pipelines", "dim"))
    return lines


def _layers(cut: tuple[int, ...]) -> str:
    return f"layer {cut[0]}" if len(cut) == 1 else f"layers {cut[0]}-{cut[-1]}"


def _countdown(node: NodeStatus, now_s: float) -> str:
    return "" if node.notice_deadline is None else f"{max(0.0, node.notice_deadline - now_s):.0f} s left"


def _colours(node: NodeStatus) -> tuple[str, str]:
    state = "spare" if node.is_spare else node.state
    if node.notice_deadline is not None and node.state not in GONE:
        state = "noticed"
    return NODE_COLOURS.get(state, ("white", "white on grey23"))


def _cell(node: NodeStatus | None, width: int, now_s: float) -> Text:
    """One position, filled with its node's colour; the state in words where there is room."""
    if node is None:
        return Text(f" {'-' * max(1, width - 2)} "[:width], "bright_black")
    style = _colours(node)[1]
    state = _countdown(node, now_s) or ("" if node.state in ("training", "running") else node.state)
    for text in (f" {node.name}  {state}", f" {node.name}", node.name):
        if len(text) <= width:
            return Text(f"{text:<{width}}", style)
    return Text(f"{'●':<{width}}" if width < 3 else f"{node.name[: width - 1]}…", style)


def _names(label: str, nodes: list[NodeStatus], inner: int, now_s: float) -> Text:
    text = Text(f"{label:<7}", "dim", no_wrap=True, overflow="ellipsis")
    for count, node in enumerate(nodes):
        left = _countdown(node, now_s)
        name = f" {node.name}" + (f" ({left})" if left else "")
        if len(text) + len(name) > inner - 8:
            text.append(f" and {len(nodes) - count} more", "dim")
            break
        text.append(name, _colours(node)[0])
    return text
