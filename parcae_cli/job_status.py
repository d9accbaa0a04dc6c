"""What is known about a job from its journal and files alone: running, ended or abandoned."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime.control.job.journal import EventRecord, JobRecord, Journal

LAST_EVENTS = 20
CURVE_POINTS = 400


@dataclass(frozen=True)
class NodeStatus:
    """One node. `position` is (pipeline, stage); `notice_deadline` is in Unix seconds.

    With several GPUs it has several `positions`, of which `position` is the first.
    """

    name: str
    state: str
    position: tuple[int, int] | None = None
    zone: str = ""
    notice_deadline: float | None = None
    positions: tuple[tuple[int, int], ...] = ()

    @property
    def is_spare(self) -> bool:
        """Whether it could train, had it a position."""
        return self.position is None and self.state in ("spare", "running")


@dataclass(frozen=True)
class Curve:
    """The losses of a job's steps: some of them, in order, and the seconds that recent steps took."""

    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    seconds_per_step: float | None = None


@dataclass(frozen=True)
class JobStatus:
    """A job at one moment. `layout` is (pipelines, stages); times are Unix seconds; money is in USD."""

    job: str
    state: str
    launcher_alive: bool
    spec: Mapping[str, Any]
    created_s: float
    ended_s: float | None
    updated_s: float | None
    step: int
    steps: int
    loss: float | None
    samples_per_s: float
    liveput: float
    layout: tuple[int, int] | None
    cuts: tuple[tuple[int, ...], ...]
    nodes: tuple[NodeStatus, ...]
    availability: tuple[int, ...]
    forecast: tuple[float, ...]
    availability_interval_s: float
    usd: float
    usd_per_hour: float
    usd_on_demand: float
    generation: int
    wanted: int
    backup_step: int | None
    backup: Mapping[str, Any]
    why: str
    migrations: tuple[Mapping[str, Any], ...]
    last_events: tuple[EventRecord, ...]
    result: Mapping[str, Any] | None
    curve: Curve
    eval_loss: float | None = None
    market: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.ended_s is not None

    def as_json(self) -> dict[str, Any]:
        """The one object that `parcae status --json` prints."""
        json_object = asdict(self)
        curve = json_object.pop("curve")
        json_object["layout"] = None if self.layout is None else _pair(self.layout, "pipelines", "stages")
        json_object["nodes"] = [
            asdict(node)
            | {"position": None if node.position is None else _pair(node.position, "pipeline", "stage")}
            | {"positions": [_pair(position, "pipeline", "stage") for position in node.positions]}
            for node in self.nodes
        ]
        json_object["spares"] = [node.name for node in self.nodes if node.is_spare]
        json_object["loss_curve"] = curve["losses"]
        return json_object


def _pair(pair: tuple[int, int], first: str, second: str) -> dict[str, int]:
    return {first: pair[0], second: pair[1]}


class StatusReader:
    """Reads one job again and again; of its growing metrics file only what is new."""

    def __init__(self, journal: Journal, job: str) -> None:
        self._journal = journal
        self._job = job
        self._metrics = journal.job_folder(job) / "metrics.jsonl"
        self._offset = 0
        self._rows: list[tuple[int, float, float]] = []

    def read(self) -> JobStatus:
        """The job now.

        Raises:
            UnknownJobError: the journal does not have it.
        """
        record = self._journal.job(self._job)
        snapshot = self._journal.read_snapshot(self._job) or {}
        events = self._journal.events(self._job, last=LAST_EVENTS)
        self._follow(self._metrics)
        return job_status(record, snapshot, events, self._curve())

    def _follow(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            self._read_on(path)
        except (ValueError, KeyError, TypeError):
            # A rollback has cut lines off and the file has grown since: it does not go on where we were.
            self._offset = 0
            self._rows.clear()
            self._read_on(path)

    def _read_on(self, path: Path) -> None:
        """Take in the lines behind the last one known.

        Raises:
            ValueError: they are no continuation of it.
        """
        with path.open("rb") as file:
            if path.stat().st_size < self._offset:
                raise ValueError("the file has become shorter")
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # the last line may still be half written
        for line in whole.splitlines():
            row = json.loads(line)
            if self._rows and row["step"] <= self._rows[-1][0]:
                raise ValueError("the steps go back")
            self._rows.append((row["step"], row["loss"], row["time_s"]))
        self._offset += len(whole)

    def _curve(self) -> Curve:
        if not self._rows:
            return Curve()
        stride = max(1, len(self._rows) // CURVE_POINTS)
        some = self._rows[::stride]
        if some[-1] is not self._rows[-1]:
            some.append(self._rows[-1])
        recent = self._rows[-21:]
        pace = (recent[-1][2] - recent[0][2]) / (len(recent) - 1) if len(recent) > 1 else None
        return Curve(tuple(row[0] for row in some), tuple(row[1] for row in some), pace)


def job_status(
    record: JobRecord, snapshot: Mapping[str, Any], events: Sequence[EventRecord], curve: Curve
) -> JobStatus:
    """Put the pieces together. The journal's word goes before the snapshot's; what is missing is 0."""
    result = record.result or {}
    layout = snapshot.get("layout")
    losses = curve.losses or tuple(snapshot.get("loss_curve", ()))
    last_loss = losses[-1] if losses else None
    return JobStatus(
        job=record.name,
        state=str(record.state),
        launcher_alive=not record.state.ended and _launcher_alive(record, snapshot),
        spec=record.spec,
        created_s=record.created_s,
        ended_s=record.ended_s,
        updated_s=snapshot.get("updated_s"),
        step=max(snapshot.get("step") or 0, result.get("steps") or 0),
        steps=snapshot.get("steps") or record.spec.get("steps") or 0,
        loss=result.get("final_loss") or snapshot.get("loss") or last_loss,
        samples_per_s=snapshot.get("samples_per_s") or 0.0,
        liveput=snapshot.get("liveput") or 0.0,
        layout=(layout["pipelines"], layout["stages"]) if layout else None,
        cuts=tuple(tuple(cut) for cut in snapshot.get("cuts") or ()),
        nodes=tuple(_node(node) for node in snapshot.get("nodes") or ()),
        availability=tuple(snapshot.get("availability") or ()),
        forecast=tuple(snapshot.get("forecast") or ()),
        availability_interval_s=snapshot.get("availability_interval_s") or 60.0,
        usd=result.get("usd") or snapshot.get("usd") or 0.0,
        usd_per_hour=0.0 if record.state.ended else snapshot.get("usd_per_hour") or 0.0,
        usd_on_demand=result.get("usd_on_demand") or snapshot.get("usd_on_demand") or 0.0,
        generation=snapshot.get("generation") or 0,
        wanted=snapshot.get("wanted") or record.spec.get("nodes") or 0,
        backup_step=snapshot.get("backup_step"),
        backup=snapshot.get("backup", {}),
        # The snapshot's reason is the planner's; what ended a job is in its result.
        why=(result if record.state.ended else snapshot).get("why") or "",
        migrations=tuple(result.get("migrations") or snapshot.get("migrations") or ()),
        last_events=tuple(events),
        result=record.result,
        curve=Curve(curve.steps, losses, curve.seconds_per_step),
        eval_loss=snapshot.get("eval_loss"),
        market=snapshot.get("market") or {},
    )


def _launcher_alive(record: JobRecord, snapshot: Mapping[str, Any]) -> bool:
    """Of a job at an anchor the launcher is there; until it has begun, it is the process that rents."""
    if record.at_anchor and "anchor" in snapshot:
        return bool(snapshot["anchor"]["launcher_alive"])
    return record.launcher_alive


def _node(node: Mapping[str, Any]) -> NodeStatus:
    position = node.get("position")
    if isinstance(position, Mapping):
        position = (position["pipeline"], position["stage"])
    first = () if position is None else ((position[0], position[1]),)
    return NodeStatus(
        name=node["name"],
        state=node["state"],
        position=first[0] if first else None,
        positions=tuple((at[0], at[1]) for at in node.get("positions", ())) or first,
        zone=node.get("zone") or "",
        notice_deadline=node.get("notice_deadline"),
    )


def newest_job(journal: Journal) -> str | None:
    """The job to show when none is named: the newest that goes on, else the newest; None without jobs."""
    jobs = sorted(journal.jobs(), key=lambda job: (not job.state.ended, job.created_s))
    return jobs[-1].name if jobs else None


def age_s(since_s: float | None, now_s: float | None = None) -> float:
    """Seconds since a moment, never negative."""
    now_s = time.time() if now_s is None else now_s
    return max(0.0, now_s - since_s) if since_s is not None else 0.0
