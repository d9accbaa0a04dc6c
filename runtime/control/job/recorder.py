"""What a job leaves behind while it runs: metrics, events, the snapshot that `status` shows, the bill."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from cloud.types import Instance, InstanceState
from runtime.control.backup.view import BackupView
from runtime.control.job.bill import Bill
from runtime.control.job.job import LaunchRequest, MigrationRecord, Transfer
from runtime.control.job.journal import JobState, Journal
from runtime.control.job.past import Past
from runtime.control.training.votes import Ballot
from runtime.planning import controller
from runtime.planning.placement import instance_of, worker_names
from runtime.planning.types import Layout, MigrationPlan, Position

_REFRESH_S = 0.25
_RATE_WINDOW_S = 10.0
_STOPPING_S = 3.0


class Recorder:
    """Writes down one job. All times it writes are Unix seconds, or seconds since the job began."""

    def __init__(
        self,
        request: LaunchRequest,
        journal: Journal,
        bill: Bill,
        first_step: int = 0,
        on_step: Callable[[int], None] | None = None,
        past: Past | None = None,
    ) -> None:
        """`past` is what the job had done before its launcher was killed."""
        self._request, self._journal, self._bill = request, journal, bill
        self._first_step = first_step
        self._on_step = on_step or (lambda step: None)
        self._began_s = time.time()
        self._folder = journal.job_folder(request.name)
        self._metrics = (self._folder / "metrics.jsonl").open("w" if past is None else "a", encoding="utf-8")
        self._offsets: list[int] = []  # where each step's line begins, so that a rollback can cut them off
        self._highest, self._committed_s, self._redone_s = 0, self._began_s, 0.0
        self._wall_s: float | None = None
        self._state = JobState.STARTING
        self._plan: MigrationPlan | None = None
        self._live_layout: Layout | None = None
        self._notices: dict[str, float] = {}
        self._recent: deque[tuple[float, int]] = deque()
        self._losses: list[float] = []
        self._evaluations: list[tuple[int, float]] = []  # steps and held-out losses
        self._samples = 0
        self._decision: controller.Decision | None = None
        self._why = ""
        self._next_refresh_s = 0.0
        self.backup = BackupView(request.backup, self.event)
        self.market: Callable[[], Mapping[str, Any]] = dict  # what the capacity record says now
        self.migrations: list[MigrationRecord] = []
        if past is not None:
            self._go_on(past)

    def _go_on(self, past: Past) -> None:
        self._began_s = past.began_s
        self._metrics.truncate(past.size)  # a line that is not whole was never acted on
        self._offsets = list(past.offsets)
        self._losses = [row["loss"] for row in past.rows]
        if past.rows:
            self._first_step = past.rows[0]["step"]
            self._samples = past.rows[-1]["samples"]
        self.migrations = list(past.migrations)
        for instance, ended_s in past.instances:
            self._bill.restore(instance, ended_s)

    # ---- what happens ----------------------------------------------------------------------------------

    def event(self, kind: str, text: str, why: str = "") -> None:
        """Something a person would want to know, with its reason."""
        self._journal.event(self._request.name, time.time(), kind, text, why)

    def instance(self, instance: Instance) -> None:
        """An instance changed its state."""
        self._bill.update(instance, time.time())
        if instance.state is InstanceState.TERMINATED:
            self._notices.pop(instance.name, None)

    def joined(self, node: str) -> None:
        """The last worker of the node's instance is ready."""
        name = instance_of(node, self._request.gpus)
        what = "its worker is" if name == node else f"its {self._request.gpus} workers are"
        self.event("joined", f"{name} joined", f"{what} ready")

    def noticed(self, node: str, deadline_s: float) -> float:
        """The cloud will take the node at `deadline_s`; returns how many seconds that leaves."""
        left_s = deadline_s - time.time()
        self._notices[node] = deadline_s
        self.event("notice", f"{node} will be taken in {left_s:.1f} s", "the cloud's notice")
        return left_s

    def spared(self, node: str) -> None:
        """The notice did not come true."""
        name = instance_of(node, self._request.gpus)
        if self._notices.pop(name, None) is not None or name == node:
            self.event("spared", f"{name} is still here", "its notice has run out")

    def step(self, step: int, ballot: Ballot, samples: int, plan: MigrationPlan, scale: float = 1.0) -> None:
        """A step is decided by these votes.

        Its line is in the file before a worker is told: the file is the ledger.
        """
        loss, eval_loss = ballot.loss, ballot.held_out_loss
        now_s = time.time()
        self.backup.step(now_s, ballot.backup_s)
        if step < self._highest:
            self._redone_s += now_s - self._committed_s
        self._highest, self._committed_s = max(self._highest, step + 1), now_s
        self._offsets.append(self._metrics.tell())
        line = {
            "step": step,
            "loss": loss,
            "samples": samples,
            "time_s": round(now_s - self._began_s, 6),
            "generation": plan.generation,
            "pipelines": plan.layout.pipelines,
            "stages": plan.layout.stages,
            "scale": scale,
        }
        if eval_loss is not None:
            line["eval_loss"] = eval_loss
            self._evaluations.append((step, eval_loss))
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()
        self._losses.append(loss)
        self._samples = samples
        self._recent.append((now_s, samples))
        while now_s - self._recent[0][0] > _RATE_WINDOW_S:
            self._recent.popleft()
        self._on_step(step + 1)

    def roll_back(self, step: int, undone: int, why: str) -> None:
        """The job went back to `step`: the lines of the steps after it are cut off, they will come again."""
        kept = step - self._first_step
        if kept < len(self._offsets):
            self._metrics.flush()
            self._metrics.seek(self._offsets[kept])
            self._metrics.truncate()
            del self._offsets[kept:], self._losses[kept:]
            self._evaluations = [(at, loss) for at, loss in self._evaluations if at < step]
        self._recent.clear()
        self.backup.pause()
        self.event("rollback", f"back to step {step}, {undone} steps are done again", why)

    def decision(self, decision: controller.Decision) -> None:
        """What the controller decided; the reason is an event when it changes."""
        self._decision = decision
        if decision.why and decision.why != self._why:
            self._why = decision.why
            if decision.commands:
                self.event("plan", decision.why)

    def waiting(self, why: str) -> None:
        """There are too few nodes."""
        if self._state is not JobState.WAITING:
            self.event("waiting", "training waits for nodes", why)
            self.set_state(JobState.WAITING)
        self._why = why
        self._plan = None

    @property
    def training(self) -> bool:
        """Whether steps are being made."""
        return self._state is JobState.RUNNING

    @property
    def time_lost_s(self) -> float:
        """Seconds that changes have cost: every pause, and the steps that were done again."""
        return sum(record.pause_s for record in self.migrations) + max(0.0, self._redone_s)

    def begin_generation(self, number: int) -> None:
        """Workers are about to hear of it: whoever goes on with the job must count on from there."""
        self._journal.begin_generation(self._request.name, number)

    def generation(self, plan: MigrationPlan) -> None:
        """A new generation begins its first step."""
        self._plan = plan

    def migrated(
        self,
        plan: MigrationPlan,
        step: int,
        pause_s: float,
        changed: tuple[tuple[str, ...], tuple[str, ...]],
        transfer: Transfer,
    ) -> None:
        """A generation committed its first step; `changed` are the nodes lost and joined since the last."""
        if self._state is not JobState.RUNNING:
            self.set_state(JobState.RUNNING)
        before, self._live_layout = self._live_layout, plan.layout
        record = MigrationRecord(
            generation=plan.generation,
            step=step,
            kind=plan.kind,
            noticed=plan.noticed,
            pause_s=pause_s,
            nodes_lost=changed[0],
            nodes_joined=changed[1],
            transfer=transfer,
            before=before,
            after=plan.layout,
        )
        if before is None:
            self.event("started", f"training {'goes on' if step else 'started'} as {plan.layout}")
            return
        self.migrations.append(record)
        if step + 1 < self._highest:
            self._redone_s -= pause_s  # which counts by itself
        with (self._folder / "migrations.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.as_json()) + "\n")
        how = "prepared" if record.noticed else "after a loss"
        if transfer.copy_s:
            how += f", {transfer.bytes_ahead / 1e6:.1f} MB copied ahead in {transfer.copy_s:.2f} s"
        self.event(
            "migration",
            f"{record.kind} {record.before} to {record.after}, {how}: "
            f"pause {record.pause_s * 1e3:.0f} ms, {transfer.bytes_at_switch / 1e6:.1f} MB sent at the "
            f"switch in {transfer.fetch_s * 1e3:.0f} ms",
            plan.why,
        )

    def set_state(self, state: JobState) -> None:
        """The job's state, in the journal at once."""
        self._state = state
        self._journal.set_job_state(self._request.name, state)
        self.refresh(force=True)

    # ---- what there is to see --------------------------------------------------------------------------

    @property
    def final_loss(self) -> float | None:
        """The loss of the last committed step."""
        return self._losses[-1] if self._losses else None

    @property
    def eval_loss(self) -> float | None:
        """The newest held-out loss."""
        return self._evaluations[-1][1] if self._evaluations else None

    @property
    def wall_s(self) -> float:
        """Seconds since the job began, or that it took."""
        return time.time() - self._began_s if self._wall_s is None else self._wall_s

    def budget_spent(self, drain_s: float = 0.0) -> str:
        """Why the budget does not allow to go on; empty while it does.

        The end comes a few seconds' cost early, since keeping the state (`drain_s`) and giving the fleet back
        take that long.
        """
        request, bill = self._request, self._bill
        spent_usd, _ = bill.spent_now()
        reserve_s = _STOPPING_S + drain_s
        reserve_usd = bill.per_hour() * bill.speed * reserve_s / 3600
        hours = (self.wall_s + reserve_s) * bill.speed / 3600
        if request.budget_usd is not None and spent_usd + reserve_usd >= request.budget_usd:
            return f"the budget is used up: {spent_usd:.2f} of {request.budget_usd:.2f} USD are spent"
        if request.max_hours is not None and hours >= request.max_hours:
            return f"the time is up: --max-hours is {request.max_hours:g}"
        lasting_usd = bill.lasting_per_hour()
        if request.max_usd_per_hour is not None and lasting_usd > request.max_usd_per_hour * 1.0001:
            return (
                f"the fleet costs {lasting_usd:.2f} USD an hour, "
                f"--max-price-per-hour is {request.max_usd_per_hour:g}"
            )
        return ""

    def refresh(self, force: bool = False) -> None:
        """Write the snapshot, a few times a second at most."""
        now_s = time.time()
        if force or now_s >= self._next_refresh_s:
            self._next_refresh_s = now_s + _REFRESH_S
            self.backup.look()
            self._journal.snapshot(self._request.name, self.snapshot(now_s))

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """What `parcae status --json` prints."""
        plan, decision = self._plan, self._decision
        spent_usd, on_demand_usd = self._bill.spent(now_s)
        assignment = plan.assignment if plan else {}
        nodes = [self._node(instance, assignment) for instance in self._bill.held()]
        return {
            "job": self._request.name,
            "model": self._request.model,
            "cloud": self._request.cloud,
            "state": str(self._state),
            "step": self._first_step + len(self._losses),
            "steps": self._request.steps,
            "loss": self.final_loss,
            "eval_loss": self.eval_loss,
            "loss_curve": _thinned(self._losses, 120),
            "samples": self._samples,
            "samples_per_s": self._samples_per_s(),
            "liveput": decision.liveput if decision else None,
            "layout": ({"pipelines": plan.layout.pipelines, "stages": plan.layout.stages} if plan else None),
            "cuts": [list(stage) for stage in plan.cuts] if plan else [],
            "nodes": sorted(nodes, key=lambda node: node["name"]),
            "spares": sorted(node["name"] for node in nodes if node["position"] is None),
            "wanted": self._request.nodes,
            "availability": list(decision.availability) if decision else [],
            "availability_interval_s": self._request.interval_s,
            "forecast": list(decision.forecast) if decision else [],
            "market": dict(self.market()),
            "usd": spent_usd,
            "usd_per_hour": self._bill.per_hour(),
            "usd_on_demand": on_demand_usd,
            "generation": plan.generation if plan else 0,
            "backup": (backup := self.backup.as_json()),
            "backup_step": backup["step"],
            "why": self._why,
            "migrations": [record.as_json() for record in self.migrations[-20:]],
            "wall_s": self.wall_s,
            "updated_s": now_s,
            "last_events": [
                {"time_s": e.time_s, "kind": e.kind, "text": e.text, "why": e.why}
                for e in self._journal.events(self._request.name, last=12)
            ],
        }

    def ending(self) -> None:
        """Training is over; the fleet is being given back."""
        self._wall_s = time.time() - self._began_s
        self.set_state(JobState.STOPPING)
        self._metrics.close()

    def ended(self, state: JobState) -> None:
        """Nothing runs any more: the last picture, for `status` after the end."""
        self._state, self._plan = state, None
        self.refresh(force=True)

    def _node(self, instance: Instance, assignment: Mapping[str, Position]) -> dict[str, Any]:
        """An instance; of several workers, `position` is the first one's that has any."""
        gpus = self._request.gpus
        held = [assignment[name] for name in worker_names(instance.name, gpus) if name in assignment]
        position = held[0] if held else None
        several = {"positions": [[at.pipeline, at.stage] for at in held], "gpus": gpus} if gpus > 1 else {}
        return several | {
            "name": instance.name,
            "state": str(InstanceState.NOTICED if instance.name in self._notices else instance.state),
            "position": None if position is None else [position.pipeline, position.stage],
            "zone": instance.pool.zone,
            "notice_deadline": self._notices.get(instance.name),
        }

    def _samples_per_s(self) -> float:
        if len(self._recent) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._recent[0], self._recent[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


def _thinned(values: list[float], count: int) -> list[float]:
    """At most `count` values, evenly spread, the last one always among them."""
    stride = max(1, -(-len(values) // count))
    return values[::-1][::stride][::-1]
