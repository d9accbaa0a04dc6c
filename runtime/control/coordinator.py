"""The coordinator: turns what the fleet reports into committed steps and new generations.

The rules that make a step atomic are here. A step counts when the last worker of the generation has voted
for it, and at no other time; the ledger is written at that point and nowhere else. `Commit` goes to each
worker on the same ordered channel as a later `Abort`, so all survivors stand before the same step. Which
layout comes next is not decided here but by `planning.controller`, which sees only events and the time.
"""

from __future__ import annotations

import asyncio
import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from cloud.types import InstanceState, NoticeKind
from runtime.control import messages
from runtime.control.backup import Backup
from runtime.control.fleet_events import (
    FleetEvent,
    InstanceChanged,
    NodeNoticed,
    RentFailed,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    WorkerMessage,
)
from runtime.control.job import MigrationRecord
from runtime.control.recorder import Recorder
from runtime.planning import controller
from runtime.planning import types as plan_types
from runtime.planning.ledger import Ledger
from runtime.planning.model import ModelSpec
from runtime.planning.types import MigrationKind, MigrationPlan

# At the start, nodes that are still booting are waited for, since training would only have to be re-laid.
START_PATIENCE_S = 20.0
# A worker that does not answer an abort for this long is taken for dead.
ABORT_TIMEOUT_S = 4.0
# A generation whose groups do not stand by then is given up.
PREPARE_TIMEOUT_S = 10.0
# A step without all votes by then is abandoned, though nobody is known to have died.
STEP_TIMEOUT_S = 60.0


class TrainingError(Exception):
    """The job cannot go on; the message says why and what to do."""


class Phase(StrEnum):
    """What the coordinator is doing."""

    WAITING = "waiting"  # no generation: too few nodes
    RUNNING = "running"  # a generation is at work (perhaps while the next is prepared)
    RECOVERING = "recovering"  # an abort is out, survivors are reporting
    FINISHING = "finishing"  # every step is committed, digests are coming in
    ENDED = "ended"


class FleetPort(Protocol):
    """What the coordinator needs of the fleet."""

    events: asyncio.Queue[FleetEvent]

    def send(self, node: str, message: dict[str, Any]) -> None:
        """To the node's worker, in order, at once."""

    def kill_worker(self, node: str) -> None:
        """End a mute worker and start another."""


@dataclass(frozen=True)
class Training:
    """What to train, and how the job is run. `interval_s` is in wall seconds."""

    model: ModelSpec
    model_template: dict[str, Any]
    steps: int
    seed: int
    corpus: list[str]
    token: bytes
    interval_s: float
    backup_every: int
    exact: bool = True
    faults: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class StopRequested:
    """The user or the system wants the job to end now."""


@dataclass
class _Worker:
    hello: messages.Hello
    ready: bool = False


@dataclass
class _Pending:
    """A generation that is being built while another one trains."""

    plan: MigrationPlan
    since_s: float
    prepared: set[str] = field(default_factory=set)

    @property
    def ready(self) -> bool:
        return self.prepared >= set(self.plan.assignment)


class Coordinator:
    """One job's coordinator. `run` returns when every step is committed, or the job was told to stop."""

    def __init__(
        self,
        training: Training,
        config: controller.ControllerConfig,
        fleet: FleetPort,
        backup: Backup,
        recorder: Recorder,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_ready` is called once, when the first step is committed or the first nodes prove too few."""
        self._training, self._config = training, config
        self._fleet, self._backup, self._recorder = fleet, backup, recorder
        self._on_ready = on_ready
        self._state = controller.initial_state(config)
        self._booting: set[str] = set()
        self._seen: set[str] = set()
        self._start_by_s = math.inf
        self._workers: dict[str, _Worker] = {}
        self._notices: dict[str, float] = {}  # node -> deadline on our clock
        self._phase = Phase.WAITING
        self._running: MigrationPlan | None = None
        self._live_layout: plan_types.Layout | None = None
        self._fresh = False  # the running generation has not committed a step yet
        self._pending: _Pending | None = None
        self._highest_generation = 0
        self._votes: dict[str, messages.Vote] = {}
        self._awaiting: set[str] = set()
        self._holds: dict[str, frozenset[int]] = {}
        self._deadline_s = math.inf
        self._planning: list[plan_types.Event] = []
        self._digests: dict[int, str] = {}
        self._corpus_digest = ""
        self._last_commit_s = 0.0
        self._ordinary_steps: deque[float] = deque(maxlen=30)
        self._changed: tuple[list[str], list[str]] = ([], [])  # nodes lost, joined since the last generation
        self._steps_done_at_push = -1
        self.ledger = Ledger(training.model.training.mini_batch)
        self.stopped = False

    # ---- the loop --------------------------------------------------------------------------------------

    async def run(self) -> str | None:
        """Train to the last step. Returns the digest of the weights, or None if the job was stopped before.

        Raises:
            TrainingError: a worker reported something that no migration can mend.
        """
        loop = asyncio.get_running_loop()
        next_tick_s = loop.time() + self._training.interval_s
        while self._phase is not Phase.ENDED:
            for event in await self._batch(min(next_tick_s, self._deadline_s) - loop.time()):
                self._handle(event)
            if loop.time() >= next_tick_s:
                next_tick_s = max(next_tick_s + self._training.interval_s, loop.time())
                self._planning.append(plan_types.IntervalElapsed())
                self._expire_notices()
            self._check_deadline()
            self._decide()
            self._recorder.refresh()
        return None if self.stopped else self._weights_digest()

    def request_stop(self) -> None:
        """End the job as soon as the loop turns; safe to call from a signal handler of the loop."""
        self._fleet.events.put_nowait(StopRequested())  # type: ignore[arg-type]

    async def _batch(self, timeout_s: float) -> Sequence[object]:
        """The next events: what happened at one instant is handled, and planned for, together."""
        queue = self._fleet.events
        batch: list[object] = []
        if queue.empty():
            try:
                batch.append(await asyncio.wait_for(queue.get(), max(0.0, min(timeout_s, 1.0))))
            except TimeoutError:
                return batch
        while not queue.empty():
            batch.append(queue.get_nowait())
        return batch

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _handle(self, event: object) -> None:
        match event:
            case WorkerMessage(node, message):
                if node in self._workers:
                    self._obey(node, messages.decode(message))
            case WorkerJoined(node, hello):
                self._join(node, hello)
            case WorkerLost(node, why):
                self._lose(node, why)
            case NodeNoticed():
                self._notice(event)
            case InstanceChanged(instance):
                self._recorder.instance(instance)
                if instance.state is InstanceState.TERMINATED:
                    self._booting.discard(instance.name)
                elif instance.name not in self._workers:
                    self._booting.add(instance.name)
            case RentFailed(why=why) | WorkerFailed(why=why):
                self._recorder.event("trouble", why)
            case StopRequested():
                self.stopped = True
                self._phase = Phase.ENDED

    def _obey(self, node: str, message: messages.Message) -> None:
        match message:
            case messages.Vote():
                self._vote(node, message)
            case messages.Prepared():
                if self._pending is not None and message.generation == self._pending.plan.generation:
                    self._pending.prepared.add(node)
            case messages.Aborted():
                self._aborted(node, message)
            case messages.Configured():
                self._configured(node, message)
            case messages.Failed():
                if self._phase is Phase.RUNNING and self._running is not None:
                    self._recorder.event("failed", f"{node} could not go on", message.error)
                    self._recover()
            case messages.Digests():
                self._digested(message)

    # ---- nodes come and go -----------------------------------------------------------------------------

    def _join(self, node: str, hello: Mapping[str, Any]) -> None:
        parsed = messages.decode(hello)
        assert isinstance(parsed, messages.Hello)
        self._workers[node] = _Worker(parsed)
        training = self._training
        # A scripted death is for a node's first worker; its successor must live.
        faults = [] if node in self._seen else training.faults
        self._seen.add(node)
        self._send(
            node,
            messages.Configure(
                node,
                training.model_template,
                training.seed,
                training.corpus,
                training.token.hex(),
                [self._backup.host, self._backup.port],
                training.exact,
                faults,
            ),
        )

    def _configured(self, node: str, message: messages.Configured) -> None:
        if message.error:
            raise TrainingError(f"node {node} cannot train: {message.error}")
        if self._corpus_digest and message.corpus_digest != self._corpus_digest:
            raise TrainingError(
                f"node {node} reads another text than the others: give every node the same files (--data)"
            )
        self._corpus_digest = message.corpus_digest
        self._workers[node].ready = True
        self._booting.discard(node)
        self._changed[1].append(node)
        self._planning.append(plan_types.NodeJoined(node))
        if node in self._notices:
            self._planning.append(plan_types.NodeNoticed(node, self._notices[node]))
        self._recorder.event("joined", f"{node} joined", "its worker is ready")

    def _notice(self, event: NodeNoticed) -> None:
        if event.notice.kind is NoticeKind.REBALANCE or event.notice.deadline_s is None:
            self._recorder.event("rebalance", f"{event.node} may be taken", "the cloud's rebalance hint")
            return
        left_s = self._recorder.seconds_until(event.notice.deadline_s)
        self._notices[event.node] = self._now_s() + left_s
        self._recorder.noticed(event.node, event.notice.deadline_s)
        self._recorder.event("notice", f"{event.node} will be taken in {left_s:.1f} s", "the cloud's notice")
        if event.node in self._workers and self._workers[event.node].ready:
            self._planning.append(plan_types.NodeNoticed(event.node, self._notices[event.node]))

    def _expire_notices(self) -> None:
        """A node that outlives its deadline by an interval was spared: it counts again."""
        late_s = self._now_s() - max(self._training.interval_s, 1.0)
        for node in [n for n, deadline_s in self._notices.items() if deadline_s < late_s]:
            del self._notices[node]
            self._recorder.noticed(node, None)
            if node in self._workers and self._workers[node].ready:
                self._planning.append(plan_types.NoticeWithdrawn(node))

    def _lose(self, node: str, why: str) -> None:
        worker = self._workers.pop(node, None)
        self._recorder.event("lost", f"{node} is gone", why)
        if worker is None or not worker.ready:
            return
        self._changed[0].append(node)
        self._planning.append(plan_types.NodeLost(node))
        self._awaiting.discard(node)
        if self._phase is Phase.RECOVERING:
            self._finish_recovery()
        elif self._phase is Phase.RUNNING:
            assert self._running is not None
            if node in self._running.assignment:
                self._recover()
            elif self._pending is not None and node in self._pending.plan.assignment:
                self._cancel_pending()
        elif self._phase is Phase.FINISHING:
            self._finish_or_recover()

    # ---- steps -----------------------------------------------------------------------------------------

    @property
    def _step(self) -> int:
        """The step that is to be committed next; as many have been."""
        return self.ledger.committed_steps

    def _vote(self, node: str, vote: messages.Vote) -> None:
        running = self._running
        if self._phase is not Phase.RUNNING or running is None:
            return
        if vote.generation != running.generation or vote.step != self._step:
            return  # from a generation that has been left
        self._votes[node] = vote
        if len(self._votes) == running.layout.positions:
            self._commit()

    def _commit(self) -> None:
        """Every worker has its gradient: the step is decided here."""
        running = self._running
        assert running is not None
        now_s = self._now_s()
        step, last = self._step, self._step + 1 == self._training.steps
        switch = self._pending is not None and self._pending.ready and not last and not self._fresh
        votes = list(self._votes.values())
        self._check_coverage(votes)
        loss = self._loss(votes)
        scale = self._clip_scale(votes)
        push = last or self._push_due(step + 1)
        commit = messages.Commit(running.generation, step, scale, not last and not switch, push)
        for node in running.assignment:
            self._send(node, commit)
        self._votes = {}
        self.ledger = self.ledger.commit(step)
        self._recorder.step(step, loss, self.ledger.samples, running)
        step_s = now_s - self._last_commit_s
        if self._fresh:
            self._live(running, step, votes, step_s)
        else:
            self._ordinary_steps.append(step_s)
        self._last_commit_s = now_s
        self._deadline_s = now_s + self._step_timeout_s()
        if switch:
            assert self._pending is not None
            self._switch(self._pending.plan)
        if last:
            self._phase = Phase.FINISHING
            for node in running.assignment:
                self._send(node, messages.Digest())

    def _check_coverage(self, votes: Sequence[messages.Vote]) -> None:
        """What the last stages report must be the whole mini-batch, once: the ledger counts on it."""
        done = sorted(micro_batch for vote in votes for micro_batch, _ in vote.losses)
        if done != list(range(self._training.model.training.micro_batches)):
            raise TrainingError(
                f"step {self._step}: micro-batches {done} were trained: this is a bug in Parcae"
            )

    def _loss(self, votes: Sequence[messages.Vote]) -> float:
        """Mean over micro-batches, summed exactly, so that it does not depend on who reported what."""
        losses = [loss for vote in votes for _, loss in vote.losses]
        return math.fsum(losses) / len(losses)

    def _clip_scale(self, votes: Sequence[messages.Vote]) -> float:
        """The factor that brings the norm of the whole gradient down to `clip_norm`; 1 if it is below."""
        clip_norm = self._training.model.training.clip_norm
        norm = math.sqrt(math.fsum(square for vote in votes for _, square in vote.square_norms))
        return clip_norm / norm if clip_norm > 0 and norm > clip_norm else 1.0

    def _push_due(self, steps: int) -> bool:
        """Every k steps, unless the last copy is still on its way: then memory and network are spared."""
        if steps % self._training.backup_every:
            return False
        arrived = self._steps_done_at_push < 0 or (self._backup.latest() or -1) >= self._steps_done_at_push
        lost_s = steps - self._steps_done_at_push > 5 * self._training.backup_every
        if arrived or lost_s:
            self._steps_done_at_push = steps
            return True
        return False

    # ---- generations -----------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Tell the controller what happened, and do what it wants."""
        if not self._planning or self._phase not in (Phase.RUNNING, Phase.WAITING) or self._too_early():
            return
        if self._phase is Phase.RUNNING and self._fresh:
            return  # state is on the move: what to do next is decided when it has arrived, within a step
        events, self._planning = self._planning, []
        decision = controller.step(self._config, self._state, events, self._now_s())
        self._state = decision.state
        self._recorder.decision(decision)
        for command in decision.commands:
            if isinstance(command, plan_types.Reconfigure):
                self._begin(command.plan)
            elif self._phase is Phase.WAITING:
                self._recorder.waiting(command.why)
                self._ready()

    def _too_early(self) -> bool:
        """Whether training has not started and nodes are still booting that it should start with."""
        if self._highest_generation or not self._booting:
            return False
        if self._start_by_s is math.inf:
            self._start_by_s = self._now_s() + START_PATIENCE_S
        return self._now_s() < self._start_by_s

    def _ready(self) -> None:
        on_ready, self._on_ready = self._on_ready, lambda: None
        on_ready()

    def _begin(self, plan: MigrationPlan) -> None:
        self._highest_generation = max(self._highest_generation, plan.generation)
        if self._phase is Phase.RUNNING:
            old = self._pending
            self._pending = _Pending(plan, self._now_s())
            if old is not None:
                for node in set(old.plan.assignment) - set(plan.assignment):
                    self._send(node, messages.Cancel(old.plan.generation))
            self._prepare(plan)
            return
        if plan.kind is MigrationKind.ROLLBACK:
            self._roll_back()
        self._prepare(plan)
        self._switch(plan)

    def _prepare(self, plan: MigrationPlan) -> None:
        first = min(plan.assignment, key=lambda node: plan.assignment[node])
        hello = self._workers[first].hello
        for node, position in plan.assignment.items():
            self._send(
                node,
                messages.Prepare(
                    plan.generation,
                    plan.layout.pipelines,
                    [position.pipeline, position.stage],
                    [list(stage) for stage in plan.cuts],
                    [hello.host, hello.store_port],
                ),
            )

    def _switch(self, plan: MigrationPlan) -> None:
        """Begin the next step in the new generation.

        Workers need not wait for each other: a source changes its layers only with the next commit, for which
        every receiver must have voted.
        """
        self._phase = Phase.RUNNING
        self._running, self._fresh, self._pending = plan, True, None
        self._votes = {}
        if not self._last_commit_s:
            self._last_commit_s = self._now_s()
        self._deadline_s = self._now_s() + self._step_timeout_s()
        for node in plan.assignment:
            fetches = [[f.layer, self._source(f.source)] for f in plan.fetches if f.node == node]
            self._send(node, messages.Switch(plan.generation, self._step, fetches))
        self._recorder.generation(plan)

    def _source(self, node: str | None) -> str | list[Any]:
        if node is None:
            return "backup" if self._step else "seed"
        hello = self._workers[node].hello
        return [hello.host, hello.transfer_port]

    def _live(self, plan: MigrationPlan, step: int, votes: Sequence[messages.Vote], step_s: float) -> None:
        """The generation has committed its first step: its migration is over."""
        self._fresh = False
        ordinary_s = statistics.median(self._ordinary_steps) if self._ordinary_steps else 0.0
        lost, joined = self._changed
        self._changed = ([], [])
        holds = {node: frozenset(plan.cuts[at.stage]) for node, at in plan.assignment.items()}
        live = [plan_types.GenerationLive(plan.generation), plan_types.StateReported(holds)]
        self._planning = [*live, *self._planning]
        for node in set(self._workers) - set(plan.assignment):
            self._send(node, messages.Release(plan.generation))
        self._recorder.migrated(
            MigrationRecord(
                generation=plan.generation,
                step=step,
                kind=plan.kind,
                noticed=plan.noticed,
                pause_s=max(0.0, step_s - ordinary_s),
                nodes_lost=tuple(lost),
                nodes_joined=tuple(joined),
                bytes_moved=sum(vote.fetched_bytes for vote in votes),
                before=self._live_layout,
                after=plan.layout,
            )
        )
        self._live_layout = plan.layout
        self._ready()

    def _cancel_pending(self) -> None:
        """The next generation cannot be built; the running one goes on."""
        assert self._pending is not None
        generation = self._pending.plan.generation
        for node in self._pending.plan.assignment:
            self._send(node, messages.Cancel(generation))
        self._pending = None
        self._planning.append(plan_types.MigrationFailed(generation))

    def _recover(self) -> None:
        """Leave the step in flight, everywhere, and ask the survivors what they hold."""
        self.ledger = self.ledger.abandon()
        pending = self._pending
        self._phase = Phase.RECOVERING
        self._votes, self._holds = {}, {}
        if pending is not None:
            self._planning.append(plan_types.MigrationFailed(pending.plan.generation))
        self._pending = None
        # Whoever may still hold layers must answer, also nodes that only wait to be released.
        self._awaiting = {node for node, worker in self._workers.items() if worker.ready}
        self._deadline_s = self._now_s() + ABORT_TIMEOUT_S
        for node in sorted(self._awaiting):
            self._send(node, messages.Abort(self._highest_generation))
        self._finish_recovery()

    def _aborted(self, node: str, message: messages.Aborted) -> None:
        if self._phase is not Phase.RECOVERING or message.generation != self._highest_generation:
            return
        if message.step == self._step:
            self._holds[node] = frozenset(message.holds)
        self._awaiting.discard(node)
        self._finish_recovery()

    def _finish_recovery(self) -> None:
        if self._awaiting:
            return
        self._phase = Phase.WAITING
        self._running = None
        self._deadline_s = math.inf
        holds = {node: layers for node, layers in self._holds.items() if node in self._workers}
        self._planning += [plan_types.TrainingStopped(), plan_types.StateReported(holds)]

    def _roll_back(self) -> None:
        """Every holder of some stage has died: go back to the newest whole copy (or to the seed)."""
        step = self._backup.latest() or 0
        undone = self._step - step
        self.ledger = self.ledger.rollback(step)
        self._backup.forget_after(step)
        self._steps_done_at_push = step if step else -1
        self._recorder.roll_back(step, undone)

    # ---- deadlines -------------------------------------------------------------------------------------

    def _step_timeout_s(self) -> float:
        ordinary_s = statistics.median(self._ordinary_steps) if self._ordinary_steps else 0.0
        return max(STEP_TIMEOUT_S, 50 * ordinary_s)

    def _check_deadline(self) -> None:
        now_s = self._now_s()
        pending = self._pending
        if pending is not None and not pending.ready and now_s > pending.since_s + PREPARE_TIMEOUT_S:
            self._recorder.event("failed", "the next generation could not be built in time", "")
            self._cancel_pending()
        if now_s < self._deadline_s:
            return
        if self._phase is Phase.RECOVERING:
            for node in sorted(self._awaiting):
                self._fleet.kill_worker(node)
                self._lose(node, f"its worker did not answer for {ABORT_TIMEOUT_S:g} s")
        elif self._phase is Phase.RUNNING:
            self._recorder.event("failed", "a step was abandoned", "not all votes came in time")
            self._recover()
        elif self._phase is Phase.FINISHING:
            self._finish_or_recover()

    # ---- the end ---------------------------------------------------------------------------------------

    def _digested(self, message: messages.Digests) -> None:
        if self._phase is not Phase.FINISHING or message.step != self._training.steps:
            return
        for layer, digest in message.layers:
            if self._digests.setdefault(layer, digest) != digest:
                raise TrainingError(f"two replicas of layer {layer} differ: this is a bug in Parcae")
        if len(self._digests) == len(self._training.model.layers):
            self._phase = Phase.ENDED

    def _finish_or_recover(self) -> None:
        """A node died after the last commit. What it alone knew comes from the backup, or is done again."""
        if self._backup.latest() == self._training.steps:
            for layer in range(len(self._training.model.layers)):
                self._digests[layer] = self._backup.weights_digest(self._training.steps, layer)
            self._phase = Phase.ENDED
            return
        assert self._running is not None
        missing = set(range(len(self._training.model.layers))) - set(self._digests)
        alive = {
            layer
            for node, at in self._running.assignment.items()
            if node in self._workers
            for layer in self._running.cuts[at.stage]
        }
        if missing - alive:
            self._recover()

    def _weights_digest(self) -> str:
        from hashlib import sha256

        return sha256("".join(self._digests[i] for i in sorted(self._digests)).encode()).hexdigest()

    def _send(self, node: str, message: messages.Message) -> None:
        self._fleet.send(node, messages.encode(message))
