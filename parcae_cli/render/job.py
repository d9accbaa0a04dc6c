"""How a launched job's request and result look."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from parcae_cli.render.output import bytes_text, duration_text, print_json, text_console, usd_text
from runtime.control.job.job import JobResult, LaunchRequest


def print_request(request: LaunchRequest, as_json: bool, plan: Mapping[str, Any] | None = None) -> None:
    """What a launch would do: every option as it was understood, and what a cloud would be asked for."""
    if as_json:
        extra = {} if plan is None else {"plan": plan}
        print_json(request.as_json() | {"job": request.name, "state": "planned"} | extra)
        return
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    for key, value in request.as_json().items():
        if key in ("template", "cost_table", "faults", "fleet", "objects"):
            continue
        if key == "corpus":
            value = _data_text(request)
        table.add_row(key, "-" if value is None else str(value))
    console = text_console()
    console.print("[bold]Would launch[/] (nothing was started)")
    console.print(table)
    if plan is not None:
        print_plan(plan)
        console.print("\n[bold]Requests that would be sent[/], in order")
        for request_ in plan["requests"]:
            text = json.dumps(request_["arguments"], indent=2)
            when = f" (if {request_['if']})" if "if" in request_ else ""
            console.print(f"{request_['call']}{when} {text}", markup=False, highlight=False, soft_wrap=True)


def _data_text(request: LaunchRequest) -> str:
    if request.objects:
        size = sum(row["size_bytes"] for row in request.objects)
        return f"{len(request.objects)} objects, {bytes_text(size)}, fetched by the nodes"
    return f"{len(request.corpus)} files" if request.corpus else "the standard library's sources"


def print_plan(plan: Mapping[str, Any]) -> None:
    """What would be rented and expected, before it costs anything."""
    from rich.table import Table

    expected = plan["expected"]
    console = text_console()
    if len(plan.get("regions", ())) > 1:
        _print_regions(plan["regions"])
    console.print(
        f"[bold]{plan['nodes']} x {plan['gpu']}[/] in {plan['region']} as {plan['layout']}, at least "
        f"{plan['smallest_fleet']}: {usd_text(expected['usd_per_hour'])} an hour, "
        f"{expected['samples_per_s']:.3g} samples/s (liveput {expected['liveput']:.3g}), "
        f"{duration_text(expected['hours'] * 3600)}, "
        f"{usd_text(expected['usd'])} in all ({expected['note']})"
    )
    if (anchor := plan.get("anchor")) is not None:
        console.print(
            f"and an anchor on demand: {anchor['instance_type']} in {anchor['zone']} with "
            f"{bytes_text(anchor['memory_bytes'])} for at most {bytes_text(anchor['needed_bytes'])}, "
            f"{usd_text(anchor['usd_per_hour'])} of these an hour"
        )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("type", "zone", "USD/h", "placement score"):
        table.add_column(name, style="dim")
    for pool in plan["pools"]:
        score = "-" if pool["placement_score"] is None else str(pool["placement_score"])
        table.add_row(pool["instance_type"], pool["zone"], f"{pool['spot_usd_per_hour']:.4f}", score)
    console.print(table)


def _print_regions(regions: Sequence[Mapping[str, Any]]) -> None:
    """The regions beside each other, the one to rent in first."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("region", "machine", "USD/h", "samples per USD", "placement score", "worth", "taken"):
        table.add_column(name, style="dim")
    for row in regions:
        numbers = (row["spot_usd_per_hour"], row["samples_per_usd"], row["placement_score"], row["worth"])
        texts = ["-" if value is None else f"{value:.4g}" for value in numbers]
        taken = (
            row["why"] if row["place"] is None else "now" if row["place"] == 1 else "when the others are out"
        )
        table.add_row(row["region"], row["machine"] or "-", *texts, taken)
    text_console().print(table)


def print_result(result: JobResult, as_json: bool) -> None:
    """How a job ended: what was trained, what it survived, what it cost."""
    if as_json:
        print_json(result.as_json())
        return
    from rich.table import Table

    colour = {"done": "green", "failed": "red"}.get(result.state, "yellow")
    loss = "-" if result.final_loss is None else f"{result.final_loss:.4f}"
    if result.eval_loss is not None:
        loss += f", {result.eval_loss:.4f} on held-out samples"
    changes = Counter(str(record.kind) for record in result.migrations)
    lost = sum(len(record.nodes_lost) for record in result.migrations)
    joined = sum(len(record.nodes_joined) for record in result.migrations)
    pauses = sorted(record.pause_s for record in result.migrations if record.before is not None)
    moved = sum(record.transfer.bytes_moved for record in result.migrations)
    kinds = ", ".join(f"{count} {kind.replace('_', '-')}" for kind, count in changes.items())
    rows = [
        ("trained", f"{result.steps} steps, {result.samples:,} samples in {duration_text(result.wall_s)}"),
        ("loss", loss),
        ("samples", f"{result.samples_lost} lost, {result.samples_repeated} trained twice"),
        ("nodes", f"{lost} lost, {joined} joined"),
        ("redone", f"{result.steps_redone} steps; {duration_text(result.time_lost_s)} lost to changes"),
        ("changes", f"{kinds or 'none'}; {bytes_text(moved)} moved"),
    ]
    if pauses:
        rows.append(("pause", f"median {duration_text(pauses[len(pauses) // 2])}, "
                              f"longest {duration_text(pauses[-1])}"))  # fmt: skip
    rows.append(("cost", f"{usd_text(result.usd)} (on demand {usd_text(result.usd_on_demand)})"))
    if result.backup.get("mode", "none") != "none":
        rows.append(("backup", f"{result.backup['mode']}: {result.backup['share_of_step_time']:.1%} of step "
                               f"time, at most {bytes_text(result.backup['peak_bytes'])}"))  # fmt: skip
    if result.weights_sha256:
        rows.append(("weights", f"sha256 {result.weights_sha256[:16]}..."))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*row)
    console = text_console()
    console.print(f"job [bold]{result.job}[/] [bold {colour}]{result.state}[/]")
    console.print(table)
