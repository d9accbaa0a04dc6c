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
from runtime.control.job.recorder import Recorder
from runtime.control.training import phases
from runtime.control.training.course import Course
from runtime.control.training.ending import Ending
from runtime.control.training.generations import Pending, members_hold
from runtime.control.training.giving_up import GivingUp
from runtime.control.training.migration import Migration
from runtime.control.training.phases import FleetPort, Phase, StartGate, StopRequest, next_batch
from runtime.control.training.reception import Reception
from runtime.control.training.recovery import Recovery
from runtime.control.training.resumption import Resumption
from runtime.control.training.roster import Roster
from runtime.control.training.training import Pace, Training, TrainingError
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
        ledger = Ledger(training.model.training.mini_batch, committed_steps=training.first_step)
        self._course = Course(ledger, training.steps)
        self._migration = Migration(self._course, self._roster, recorder, self._send)
        self._recovery = Recovery(self._course, self._roster, recorder, self._send)
        layers = len(training.model.layers)
        self._ending = Ending(self._course, layers, backup, recorder, keeper, self._send)
        self._giving_up = GivingUp(
            self._course, self._roster, recorder, fleet, self._lose, config.max_nodes, config.gpus
        )
        self._gate, self._turns = StartGate(), phases.Turns()
        self._pace = Pace(config.profile if training.learns else None)
        self._orders = BackupOrders(training.backup, training.backup_every, at_once=resumption is not None)
        self._resumption = resumption
        if resumption is not None:
            self._course.ledger = replace(ledger, committed_steps=resumption.step)
            self._course.highest_generation = resumption.generation
            self._state = resumption.state(self._state)

    @property
    def ledger(self) -> Ledger:
        """What has been committed."""
        return self._course.ledger

    @property
    def stopped(self) -> StopRequest | None:
        """Why the job ends before its last step, if it does."""
        return self._ending.stopped

    # ---- the loop --------------------------------------------------------------------------------------

    async def run(self) -> str | None:
        """Train to the last step. Returns the digest of the weights, or None if the job was cut off before.

        Raises:
            TrainingError: a worker reported something that no migration can mend.
        """
        next_tick_s = self._now_s() + self._training.interval_s
        while self._course.phase is not Phase.ENDED:
            lead_s = self._pace.notice_lead_s(self._planned_lead_s)
            wake_s = min(next_tick_s, self._course.deadline_s, self._roster.next_due_s(lead_s))
            for event in await next_batch(self._fleet.events, wake_s - self._now_s()):
                self._make_up()
                self._handle(event)
            if self._now_s() >= next_tick_s:
                next_tick_s = max(next_tick_s + self._training.interval_s, self._now_s())
                self._config = self._pace.times.corrected(self._config)
                self._course.planning.append(plan_types.IntervalElapsed())
                self._course.planning += self._reception.spared(self._now_s())
                self._giving_up.look(self._now_s(), self._training.lame_s, self._training.unready_s)
            for node in self._roster.due(self._now_s(), max(lead_s, self._foresight_s())):
                self._course.planning.append(plan_types.NodeNoticed(node, self._roster.notices[node]))
            self._check_deadline()
            self._decide()
            self._recorder.refresh()
            self._keeper.tick()
            self._ending.look_at_budget(self._now_s(), self._pace.ordinary_s)
        return self._ending.digest

    def request_stop(self, request: StopRequest) -> None:
        """End the job as soon as the loop turns; safe to call from a signal handler."""
        self._fleet.events.put_nowait(request)  # type: ignore[arg-type]

    def _foresight_s(self) -> float:
        """How long before its deadline a notice counts in the next plan, though the node may train on longer.

        Who joins may make another layout the fastest until a noticed node goes. A plan is made for an
        interval: one that does not last so long would be two changes where one is enough.
        """
        joins = any(isinstance(event, plan_types.NodeJoined) for event in self._course.planning)
        return self._training.interval_s if joins and self._course.phase is Phase.RUNNING else 0.0

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def _handle(self, event: object) -> None:
        match event:
            case fleet_events.WorkerMessage(node, message):
                if node in self._roster:
                    self._obey(node, messages.decode(message))
            case fleet_events.WorkerJoined():
                self._reception.join(event, self._resumption)
            case fleet_events.WorkerLost(node, why, alone):
                ready = self._roster.is_ready(node)
                if alone and not ready and node in self._roster:
                    self._giving_up.fail_start(node, why)
                self._lose(node, why)
                if alone and ready:
                    self._giving_up.died(node, why)
            case fleet_events.WorkerFailed(node, why):
                self._giving_up.fail_start(node, why)
            case StopRequest():
                self._ending.stop(event)
            case _:
                began = self._course.highest_generation > 0
                self._reception.hear(event, self._now_s(), began, self._config.profile.fewest_nodes)
                if isinstance(event, fleet_events.NodeBroken):
                    self._giving_up.broken(event)
                elif isinstance(event, fleet_events.InstanceChanged):
                    self._giving_up.changed(event.instance)

    def _obey(self, node: str, message: messages.Message) -> None:
        match message:
            case messages.Vote():
                if self._course.phase is Phase.RUNNING and self._course.ballot.cast(node, message):
                    self._commit()
            case messages.Prepared() | messages.Copied():
                if self._course.pending is not None:
                    self._course.pending.heard(node, message)
            case messages.Aborted():
                if self._resumption is not None:
                    self._resumption.answer(node, message.step, message.holds)
                else:
                    self._recovery.answer(node, message)
                    self._finish_recovery()
            case messages.Configured(error=error) if error:
                if self._course.highest_generation == 0:  # it is the job's own fault, as far as we know
                    raise TrainingError(f"node {node} cannot train: {error}")
                self._giving_up.fail_start(node, error)
            case messages.Configured():
                self._course.planning.append(self._reception.configured(node, message))
                self._giving_up.ready(node)
            case messages.Failed() if not self._roster.is_ready(node):
                self._giving_up.fail_start(node, message.error)
            case messages.Failed():
                if self._course.phase is Phase.RUNNING:
                    self._recorder.event("failed", f"{node} could not go on", message.error)
                    self._giving_up.report(node, message)
                    self._recover()
            case messages.Digests():
                self._ending.heard(message)

    # ---- nodes come and go -----------------------------------------------------------------------------

    def _lose(self, node: str, why: str) -> None:
        course = self._course
        first = self._config.gpus == 1 or self._roster.whole(node)
        if first and node in self._roster:  # else it has been told, as given up or with its instance
            self._recorder.event("lost", f"{node} is gone", why)
        if not self._roster.lose(node):
            return
        course.planning.append(plan_types.NodeLost(node))
        self._giving_up.lose(node)
        self._recovery.lose(node)
        if course.phase is Phase.RECOVERING:
            self._finish_recovery()
        elif course.phase is Phase.RUNNING:
            if course.running is None or node in course.running.assignment:
                self._recover()
            elif course.pending is not None and not course.pending.possible(self._roster.ready):
                self._migration.cancel()
        elif course.phase is Phase.FINISHING:
            self._ending.lose(node)
            self._finish_or_recover()

    # ---- steps -----------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Every worker has its gradient: the step is decided here."""
        course, training = self._course, self._training
        running, ballot, pending, fresh = course.running, course.ballot, course.pending, course.fresh
        assert running is not None
        step, last, step_s = course.step, course.step + 1 == course.steps, self._pace.ordinary_s
        switch = (
            not last
            and not fresh
            and pending is not None
            and pending.goes(self._now_s(), step_s, self._roster.notices, self._recorder.event)
        )
        ballot.check_coverage(training.model.training.micro_batches)
        scale = ballot.clip_scale(training.model.training.clip_norm)
        push, stream = self._orders.at(step + 1, last, fresh, self._backup)
        course.ledger = course.ledger.commit(step)
        self._giving_up.committed(step, running.assignment)
        self._recorder.step(step, ballot, course.ledger.samples, running, scale)
        proceed = not (last or switch or self._orders.halts)
        commit = messages.Commit(running.generation, step, scale, proceed, push, stream)
        for node in running.assignment:
            self._send(node, commit)
        course.ballot = Ballot(running.generation, course.step, len(running.assignment))
        pause_s = self._pace.commit(self._now_s(), fresh, running.layout)
        if fresh:
            self._migration.live(running, step, ballot, pause_s)
            self._ready()
        course.deadline_s = self._now_s() + self._pace.timeout_s
        if switch and pending is not None:
            self._switch(pending.plan)
        if last:
            self._finish(members_hold(running), {})

    # ---- generations -----------------------------------------------------------------------------------

    def _decide(self) -> None:
        """Tell the controller what happened, and do what it wants."""
        course = self._course
        if not course.planning or course.phase not in (Phase.RUNNING, Phase.WAITING):
            return
        fresh = course.phase is Phase.RUNNING and course.fresh  # state is on the move, for a step at most
        if fresh or self._gate.closed(self._roster.awaited, self._now_s()):
            return
        if self._resumption is not None and not self._resume(self._resumption):
            return
        self._giving_up.settle()
        events, course.planning = course.planning, []
        decision = controller.step(self._config, self._state, events, self._now_s())
        self._state = decision.state
        self._recorder.decision(decision)
        for command in decision.commands:
            self._carry_out(command)
        if course.pending is not None and self._state.pending is None:
            self._migration.cancel()  # a member will go, and there are too few for another layout

    def _carry_out(self, command: plan_types.Command) -> None:
        if isinstance(command, plan_types.Reconfigure):
            self._begin(command.plan)
        elif self._course.phase is Phase.WAITING:
            self._recorder.waiting(command.why)
            self._ready()

    def _resume(self, resumption: Resumption) -> bool:
        """Go on from what the survivors hold; False: wait for more of them, or all is done."""
        alive, course = self._roster.ready, self._course
        if resumption.waits(alive, self._roster.booting, self._now_s()):
            return False
        self._resumption = None
        holds = resumption.holds(alive)
        self._recorder.event("resumed", f"at step {course.step}", f"{len(holds)} workers were found again")
        course.planning += [plan_types.TrainingStopped(), plan_types.StateReported(holds)]
        if course.step == course.steps and resumption.is_whole(alive):
            self._finish(holds, resumption.copies(alive))
        elif course.step == course.steps == self._backup.status.latest:
            self._finish_or_recover()
        return course.phase is Phase.WAITING

    def _begin(self, plan: MigrationPlan) -> None:
        course = self._course
        course.highest_generation = max(course.highest_generation, plan.generation)
        self._recorder.begin_generation(course.highest_generation)
        if course.phase is Phase.RUNNING:
            cost_s, ahead = self._state.pending_cost.total_s, self._training.copy_ahead
            self._migration.foresee(Pending(plan, self._now_s(), cost_s, ahead))
            return
        if plan.kind is MigrationKind.ROLLBACK:
            self._roll_back(plan.generation)
        self._migration.prepare(plan)
        self._switch(plan)

    def _switch(self, plan: MigrationPlan) -> None:
        self._orders.reset()
        self._migration.switch(plan, self._now_s() + self._pace.timeout_s)

    # ---- recovery --------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Leave the step in flight, everywhere, and ask the survivors what they hold."""
        self._recovery.begin(self._now_s() + self._pace.abort_timeout_s)
        self._finish_recovery()

    def _finish_recovery(self) -> None:
        holds = self._recovery.finished()
        if holds is None:
            return
        if self._ending.suffices(holds):
            self._finish(holds, {})
            return
        self._course.planning += [plan_types.TrainingStopped(), plan_types.StateReported(holds)]

    def _roll_back(self, generation: int) -> None:
        """Every holder of some stage has died: go back to the newest whole copy (or to the seed).

        Raises:
            TrainingError: the state that the job began with, or its last checkpoint, is out of reach.
        """
        try:
            step, why = self._newest_state(generation)
        except OSError as error:
            raise TrainingError(f"every holder of a stage died: {error}; try `parcae resume`") from error
        self._recorder.roll_back(step, self._course.step - step, why)
        self._course.ledger = self._course.ledger.rollback(step)

    def _newest_state(self, generation: int) -> tuple[int, str]:
        return self._backup.go_back(generation) or 0, "every holder of a stage died"

    def _make_up(self) -> None:
        """Whoever was not heard because this process did not run is not late."""
        if gap_s := self._turns.gap_s(self._now_s()):
            for patient in (self._course, self._roster, self._gate, self._resumption):
                if patient is not None:
                    patient.postpone(gap_s)
            self._recorder.event("trouble", f"the launcher was not running for {gap_s:.1f} s")

    def _check_deadline(self) -> None:
        self._make_up()
        now_s, course, pending = self._now_s(), self._course, self._course.pending
        if pending is not None and pending.late(now_s):
            self._recorder.event("failed", "the next generation could not be built in time")
            self._migration.cancel()
        if now_s < course.deadline_s:
            return
        if course.phase is Phase.RECOVERING:
            for node in self._recovery.awaiting:
                self._fleet.kill_worker(node)
                why = f"its worker did not answer for {self._pace.abort_timeout_s:g} s"
                self._lose(node, why)
                self._giving_up.died(node, why)
        elif course.phase is Phase.RUNNING:
            self._recorder.event("failed", "a step was abandoned", "not all votes came in time")
            self._pace.stuck()
            self._recover()
        elif course.phase is Phase.FINISHING:
            self._recover()  # who holds the outcome and does not tell it is given up

    # ---- the end ---------------------------------------------------------------------------------------

    def _finish(self, holds: Mapping[str, frozenset[int]], copies: Mapping[str, list[int]]) -> None:
        """Every step is committed, and these nodes hold the outcome."""
        self._ending.begin(holds, copies, self._now_s() + self._pace.timeout_s)

    def _finish_or_recover(self) -> None:
        """A node died after the last commit. What it alone knew comes from the backup, or is done again."""
        if self._ending.is_out_of_reach():
            self._recover()

    def _send(self, node: str, message: messages.Message) -> None:
        self._fleet.send(node, messages.encode(message))
