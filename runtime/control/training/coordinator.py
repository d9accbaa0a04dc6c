"""The coordinator: turns what the fleet reports into committed steps and new generations.

The rules that make a step atomic are here. A step counts when the last worker of the generation has voted
for it, and at no other time; the ledger is written at that point and nowhere else. `Commit` goes to each
worker on the same ordered channel as a later `Abort`, so all survivors stand before the same step. Which
layout comes next is not decided here but by `planning.controller`, which sees only events and the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from runtime.control import messages
from runtime.control.backup.keeper import CheckpointKeeper
from runtime.control.backup.orders import BackupOrders
from runtime.control.backup.process import BackupPort
from runtime.control.fleet import events as fleet_events
from runtime.control.job.journal import JobState
from runtime.control.job.recorder import Recorder
from runtime.control.training import generations, phases
from runtime.control.training.digests import FinalDigests
from runtime.control.training.generations import Pending, Recovery, members_hold
from runtime.control.training.phases import FleetPort, Phase, StartGate, StopRequest, next_batch
from runtime.control.training.reception import Reception
from runtime.control.training.resumption import Resumption
from runtime.control.training.roster import Roster
from runtime.control.training.training import NEVER_S, Pace, Training
from runtime.control.training.votes import Ballot
from runtime.planning import controller
from runtime.planning import types as plan_types
from runtime.planning.costs import notice_lead_s
from runtime.planning.ledger import Ledger
from runtime.planning.types import MigrationKind, MigrationPlan


class Coordinator:
    """One job's coordinator. `run` returns when every step is committed, or the job was told to stop."""

    def __init__(
        self,
        training: Training,
        config: controller.ControllerConfig,
        fleet: FleetPort,
        backup: BackupPort,
        recorder: Recorder,
        keeper: CheckpointKeeper,
        on_ready: Callable[[], None] = lambda: None,
        resumption: Resumption | None = None,
    ) -> None:
        """`on_ready` is called once, when the first step is committed or the first nodes prove too few.

        `resumption`: the job's last coordinator was killed, and workers may still hold its state.
        """
        self._training, self._config = training, config
        self._fleet, self._backup, self._recorder = fleet, backup, recorder
        self._keeper, self._ready = keeper, phases.once(on_ready)
        self._state = controller.initial_state(config)
        self._roster = Roster(config.gpus)
        self._reception = Reception(training, self._roster, backup, keeper, recorder, self._send)
        self._planned_lead_s = notice_lead_s(config.profile, config.costs)
        self._phase = Phase.WAITING
        self._running: MigrationPlan | None = None
        self._fresh = False  # the running generation has not committed a step yet
        self._pending: Pending | None = None
        self._highest_generation = 0
        self._ballot = Ballot(0, 0, 0)
        self._recovery = Recovery(0, 0, ())
        self._deadline_s = NEVER_S
        self._gate = StartGate()
        self._planning: list[plan_types.Event] = []
        self._digests = FinalDigests(len(training.model.layers))
        self._pace = Pace(config.profile if training.learns else None)
        self._orders = BackupOrders(training.backup, training.backup_every, at_once=resumption is not None)
        self.ledger = Ledger(training.model.training.mini_batch, committed_steps=training.first_step)
        self.stopped: StopRequest | None = None
        self._drained_by_s = NEVER_S
        self._resumption = resumption
        if resumption is not None:
            self.ledger = replace(self.ledger, committed_steps=resumption.step)
            self._highest_generation = resumption.generation
            self._state = resumption.state(self._state)

    # ---- the loop --------------------------------------------------------------------------------------

    async def run(self) -> str | None:
        """Train to the last step. Returns the digest of the weights, or None if the job was cut off before.

        Raises:
            TrainingError: a worker reported something that no migration can mend.
        """
        next_tick_s = self._now_s() + self._training.interval_s
        while self._phase is not Phase.ENDED:
            lead_s = self._pace.notice_lead_s(self._planned_lead_s)
            wake_s = min(next_tick_s, self._deadline_s, self._roster.next_due_s(lead_s))
            for event in await next_batch(self._fleet.events, wake_s - self._now_s()):
                self._handle(event)
            if self._now_s() >= next_tick_s:
                next_tick_s = max(next_tick_s + self._training.interval_s, self._now_s())
                self._config = self._pace.times.corrected(self._config)
                self._planning.append(plan_types.IntervalElapsed())
                self._planning += self._reception.spared(self._now_s())
            for node in self._roster.due(self._now_s(), lead_s):
                self._planning.append(plan_types.NodeNoticed(node, self._roster.notices[node]))
            self._check_deadline()
            self._decide()
            self._recorder.refresh()
            self._keeper.tick()
            self._end_in_time()
        return self._digests.weights() if self._digests.complete else None

    def request_stop(self, request: StopRequest) -> None:
        """End the job as soon as the loop turns; safe to call from a signal handler."""
        self._fleet.events.put_nowait(request)  # type: ignore[arg-type]

    def _end_in_time(self) -> None:
        """Before the budget is overstepped the step in flight becomes the last, and its state is kept."""
        drain_s = phases.DRAIN_S + 2 * self._pace.ordinary_s if self._keeper.wanted else 0.0
        if self.stopped is not None and self._now_s() > self._drained_by_s:
            self._phase = Phase.ENDED
        elif self.stopped is None and (why := self._recorder.budget_spent(drain_s)):
            self.stopped = StopRequest(JobState.FAILED, why)
            self._drained_by_s = self._now_s() + drain_s
            if self._phase is Phase.RUNNING and drain_s:
                self._training = replace(self._training, steps=self._step + 1)
            else:
                self._phase = Phase.ENDED

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _handle(self, event: object) -> None:
        match event:
            case fleet_events.WorkerMessage(node, message):
                if node in self._roster:
                    self._obey(node, messages.decode(message))
            case fleet_events.WorkerJoined():
                self._reception.join(event, self._resumption)
            case fleet_events.WorkerLost(node, why):
                self._lose(node, why)
            case StopRequest():
                self.stopped = event
                self._phase = Phase.ENDED
            case _:
                began = self._highest_generation > 0
                self._reception.hear(event, self._now_s(), began, self._config.profile.fewest_nodes)

    def _obey(self, node: str, message: messages.Message) -> None:
        match message:
            case messages.Vote():
                if self._phase is Phase.RUNNING and self._ballot.cast(node, message):
                    self._commit()
            case messages.Prepared() | messages.Copied():
                if self._pending is not None:
                    self._pending.heard(node, message)
            case messages.Aborted():
                self._aborted(node, message)
            case messages.Configured():
                self._planning.append(self._reception.configured(node, message))
            case messages.Failed():
                if self._phase is Phase.RUNNING:
                    self._recorder.event("failed", f"{node} could not go on", message.error)
                    self._recover()
            case messages.Digests():
                if self._phase is Phase.FINISHING and message.step == self._training.steps:
                    self._digests.report(message.layers)
                    self._phase = Phase.ENDED if self._digests.complete else self._phase

    # ---- nodes come and go -----------------------------------------------------------------------------

    def _lose(self, node: str, why: str) -> None:
        if self._config.gpus == 1 or self._roster.whole(node):  # else the first to go has been told
            self._recorder.event("lost", f"{node} is gone", why)
        if not self._roster.lose(node):
            return
        self._planning.append(plan_types.NodeLost(node))
        self._recovery.lose(node)
        if self._phase is Phase.RECOVERING:
            self._finish_recovery()
        elif self._phase is Phase.RUNNING:
            assert self._running is not None
            if node in self._running.assignment:
                self._recover()
            elif self._pending is not None and not self._pending.possible(self._roster.ready):
                self._cancel_pending()
        elif self._phase is Phase.FINISHING:
            self._digests.lose(node)
            self._finish_or_recover()

    # ---- steps -----------------------------------------------------------------------------------------

    @property
    def _step(self) -> int:
        """The step that is to be committed next; as many have been."""
        return self.ledger.committed_steps

    def _commit(self) -> None:
        """Every worker has its gradient: the step is decided here."""
        running, ballot, training = self._running, self._ballot, self._training
        assert running is not None
        step, last = self._step, self._step + 1 == training.steps
        switch = (
            not last
            and not self._fresh
            and self._pending is not None
            and self._pending.goes(
                self._now_s(), self._pace.ordinary_s, self._roster.notices, self._recorder.event
            )
        )
        ballot.check_coverage(training.model.training.micro_batches)
        scale = ballot.clip_scale(training.model.training.clip_norm)
        push, stream = self._orders.at(step + 1, last, self._fresh, self._backup)
        self.ledger = self.ledger.commit(step)
        self._recorder.step(step, ballot, self.ledger.samples, running, scale)
        proceed = not (last or switch or self._orders.halts)
        commit = messages.Commit(running.generation, step, scale, proceed, push, stream)
        for node in running.assignment:
            self._send(node, commit)
        self._ballot = Ballot(running.generation, self._step, len(running.assignment))
        pause_s = self._pace.commit(self._now_s(), self._fresh, running.layout)
        if self._fresh:
            self._live(running, step, ballot, pause_s)
        self._deadline_s = self._now_s() + self._pace.timeout_s
        if switch and self._pending is not None:
            self._switch(self._pending.plan)
        if last:
            self._finish(members_hold(running), {})

    # ---- generations -----------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Tell the controller what happened, and do what it wants."""
        if not self._planning or self._phase not in (Phase.RUNNING, Phase.WAITING):
            return
        fresh = self._phase is Phase.RUNNING and self._fresh  # state is on the move, for a step at most
        if fresh or self._gate.closed(self._roster.awaited, self._now_s()):
            return
        if self._resumption is not None and not self._resume(self._resumption):
            return
        events, self._planning = self._planning, []
        decision = controller.step(self._config, self._state, events, self._now_s())
        self._state = decision.state
        self._recorder.decision(decision)
        for command in decision.commands:
            self._carry_out(command)
        if self._pending is not None and self._state.pending is None:
            self._cancel_pending()  # a member will go, and there are too few for another layout

    def _carry_out(self, command: plan_types.Command) -> None:
        if isinstance(command, plan_types.Reconfigure):
            self._begin(command.plan)
        elif self._phase is Phase.WAITING:
            self._recorder.waiting(command.why)
            self._ready()

    def _resume(self, resumption: Resumption) -> bool:
        """Go on from what the survivors hold; False: wait for more of them, or all is done."""
        alive = self._roster.ready
        if resumption.waits(alive, self._roster.booting, self._now_s()):
            return False
        self._resumption = None
        holds = resumption.holds(alive)
        self._recorder.event("resumed", f"at step {self._step}", f"{len(holds)} workers were found again")
        self._planning += [plan_types.TrainingStopped(), plan_types.StateReported(holds)]
        if self._step == self._training.steps and resumption.is_whole(alive):
            self._finish(holds, resumption.copies(alive))
        elif self._step == self._training.steps == self._backup.status.latest:
            self._finish_or_recover()
        return self._phase is Phase.WAITING

    def _begin(self, plan: MigrationPlan) -> None:
        self._highest_generation = max(self._highest_generation, plan.generation)
        self._recorder.begin_generation(self._highest_generation)
        if self._phase is Phase.RUNNING:
            cost_s, ahead = self._state.pending_cost.total_s, self._training.copy_ahead
            old, self._pending = self._pending, Pending(plan, self._now_s(), cost_s, ahead)
            if old is not None:
                for node in set(old.plan.assignment) - set(plan.assignment):
                    self._send(node, messages.Cancel(old.plan.generation))
            self._prepare(plan, ahead)
            return
        if plan.kind is MigrationKind.ROLLBACK:
            self._roll_back()
        self._prepare(plan)
        self._switch(plan)

    def _prepare(self, plan: MigrationPlan, ahead: bool = False) -> None:
        for node, message in generations.prepare_messages(plan, self._roster.workers, ahead).items():
            self._send(node, message)

    def _switch(self, plan: MigrationPlan) -> None:
        """Begin the next step in the new generation.

        Workers need not wait for each other: a source changes its layers only with the next commit, for which
        every receiver must have voted.
        """
        self._phase = Phase.RUNNING
        self._orders.reset()
        self._running, self._fresh, self._pending = plan, True, None
        self._ballot = Ballot(plan.generation, self._step, len(plan.assignment))
        self._deadline_s = self._now_s() + self._pace.timeout_s
        for node, message in generations.switch_messages(plan, self._step, self._roster.workers).items():
            self._send(node, message)
        self._recorder.generation(plan)

    def _live(self, plan: MigrationPlan, step: int, ballot: Ballot, pause_s: float) -> None:
        """The generation has committed its first step: its migration is over."""
        self._fresh = False
        live = plan_types.GenerationLive(plan.generation)
        self._planning = [live, plan_types.StateReported(members_hold(plan)), *self._planning]
        for node in set(self._roster.workers) - set(plan.assignment):
            self._send(node, messages.Release(plan.generation))
        self._recorder.migrated(plan, step, pause_s, self._roster.changes(), ballot.transfer)
        self._ready()

    def _cancel_pending(self) -> None:
        """The next generation cannot be built; the running one goes on."""
        assert self._pending is not None
        generation = self._pending.plan.generation
        for node in self._pending.plan.assignment:
            self._send(node, messages.Cancel(generation))
        self._pending = None
        self._planning.append(plan_types.MigrationFailed(generation))

    # ---- recovery --------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Leave the step in flight, everywhere, and ask the survivors what they hold."""
        self.ledger = self.ledger.abandon()
        self._phase = Phase.RECOVERING
        if self._pending is not None:
            self._planning.append(self._pending.overtaken(self._recorder.event))
            self._pending = None
        # Whoever may still hold layers must answer, also nodes that only wait to be released.
        self._recovery = Recovery(self._highest_generation, self._step, self._roster.ready)
        self._deadline_s = self._now_s() + self._pace.abort_timeout_s
        for node in sorted(self._recovery.awaiting):
            self._send(node, messages.Abort(self._highest_generation))
        self._finish_recovery()

    def _aborted(self, node: str, message: messages.Aborted) -> None:
        if self._resumption is not None:
            self._resumption.answer(node, message.step, message.holds)
        elif self._phase is Phase.RECOVERING and message.generation == self._recovery.generation:
            self._recovery.answer(node, message.step, message.holds)
            self._finish_recovery()

    def _finish_recovery(self) -> None:
        if self._recovery.awaiting:
            return
        self._phase = Phase.WAITING
        self._running = None
        self._deadline_s = NEVER_S
        holds = self._recovery.holds()
        if self._step == self._training.steps and self._digests.whole(holds):
            self._finish(holds, {})  # nothing is left to be trained
            return
        self._planning += [plan_types.TrainingStopped(), plan_types.StateReported(holds)]

    def _roll_back(self) -> None:
        """Every holder of some stage has died: go back to the newest whole copy (or to the seed)."""
        step, why = self._newest_state()
        self._recorder.roll_back(step, self._step - step, why)
        self.ledger = self.ledger.rollback(step)

    def _newest_state(self) -> tuple[int, str]:
        return self._backup.freeze() or 0, "every holder of a stage died"

    def _check_deadline(self) -> None:
        now_s, pending = self._now_s(), self._pending
        if pending is not None and pending.late(now_s):
            self._recorder.event("failed", "the next generation could not be built in time")
            self._cancel_pending()
        if now_s < self._deadline_s:
            return
        if self._phase is Phase.RECOVERING:
            for node in sorted(self._recovery.awaiting):
                self._fleet.kill_worker(node)
                self._lose(node, f"its worker did not answer for {self._pace.abort_timeout_s:g} s")
        elif self._phase is Phase.RUNNING:
            self._recorder.event("failed", "a step was abandoned", "not all votes came in time")
            self._pace.stuck()
            self._recover()
        elif self._phase is Phase.FINISHING:
            self._recover()  # who holds the outcome and does not tell it is given up

    # ---- the end ---------------------------------------------------------------------------------------

    def _finish(self, holds: Mapping[str, frozenset[int]], copies: Mapping[str, list[int]]) -> None:
        """Every step is committed, and these nodes hold the outcome."""
        self._phase, self._digests.holders = Phase.FINISHING, holds
        self._deadline_s = self._now_s() + self._pace.timeout_s
        if copies:
            self._backup.expect(self._step)
        for node in holds:
            self._send(node, messages.Digest(copies.get(node, [])))

    def _finish_or_recover(self) -> None:
        """A node died after the last commit. What it alone knew comes from the backup, or is done again."""
        if self._digests.take_from(self._backup, self._training.steps):
            self._phase = Phase.ENDED
        elif self._digests.out_of_reach():
            self._recover()

    def _send(self, node: str, message: messages.Message) -> None:
        self._fleet.send(node, messages.encode(message))
