"""One job from start to end: journal, fleet, backup, coordinator; and whatever happens, nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cloud.provider import CloudError, MaybeStillRunningError, SpotProvider, TellsMarket
from runtime.control.backup.checkpoint import Checkpoint
from runtime.control.backup.checkpoint_target import target_of
from runtime.control.backup.keeper import LAST_COPY_TIMEOUT_S, CheckpointKeeper
from runtime.control.backup.process import BackupProcess, NoBackup
from runtime.control.data_set import DataSet
from runtime.control.fleet.doors import FOLDER as DOORS
from runtime.control.fleet.fleet import Fleet
from runtime.control.fleet.records import Inheritance
from runtime.control.job.bill import Bill
from runtime.control.job.capacity import CapacityWatch, in_words, known_rates
from runtime.control.job.continuation import check_continues
from runtime.control.job.job import JobResult, LaunchRequest
from runtime.control.job.job_data import data_of, sent_before
from runtime.control.job.journal import JobState, Journal
from runtime.control.job.past import NotResumableError, Past, job_token, read_past, resumable
from runtime.control.job.recorder import Recorder
from runtime.control.providers import ProviderSetup, provider_setup
from runtime.control.training.coordinator import Coordinator
from runtime.control.training.phases import DRAIN_S, StopRequest
from runtime.control.training.planner import planner_config, redundant_layout
from runtime.control.training.restarts import RestartingCoordinator
from runtime.control.training.resumption import Resumption
from runtime.control.training.training import Training, TrainingError
from runtime.planning.controller import ControllerConfig
from runtime.planning.errors import InputError
from runtime.planning.model import ModelSpec, parse_model
from runtime.planning.placement import instances_needed
from runtime.planning.profile import STATE_BYTES_PER_PARAM, estimated_profile

# How far to look for the smallest fleet that could train a model.
MOST_NODES_TRIED = 64

# Called in the job's loop after every committed step, with the number of steps committed and the provider.
Watch = Callable[[int, Any], None]


def run(request: LaunchRequest, watch: Watch | None = None) -> JobResult:
    """Run a job in this process until it ends, by itself or by SIGINT or SIGTERM.

    Raises:
        InputError: the trace or the template is wrong.
        JobExistsError: there is already a job of this name.
        MaybeStillRunningError: something may have been left running.
    """
    spec = parse_model(request.template, request.model)
    start = read_start(request, spec)
    if request.policy == "checkpoint" and request.checkpoint is None:
        request = replace(request, checkpoint=str(request.home / "jobs" / request.name / "checkpoints"))
    if request.checkpoint is not None:
        target_of(request.checkpoint).check()
    journal = Journal(request.home)
    try:
        setup = provider_setup(request, spec, journal)
        request = replace(request, gpus_per_node=setup.gpus)
        check_nodes(request, setup.spec or spec)  # what fits depends on the device that the cloud has
        data = data_of(request, setup.here)
    except BaseException:
        journal.close()
        raise
    journal.create_job(request.name, request.as_json(), os.getpid())
    return _carry_out(request, journal, lambda: _Job(request, spec, setup, journal, start, data, watch))


def resume(home: Path, name: str, watch: Watch | None = None, **changes: Any) -> JobResult:
    """Go on with a job whose launcher was killed, in this process; `changes` are fields of its request.

    Instances, nodes and workers that live are taken over with the state that they hold; without them it goes
    on from the last checkpoint on disk. Until the cloud has answered, a failure leaves everything as it is.

    Raises:
        UnknownJobError, NotResumableError: there is no such job, or there is nothing to go on with.
        InputError, MaybeStillRunningError: as for `run`.
    """
    journal = Journal(home)
    try:
        record = resumable(journal, name)
        request = replace(LaunchRequest.from_json(record.spec), home=home, **changes)
        spec = parse_model(request.template, request.model)
        past = read_past(journal, record, request)
        start = newest_state(request, spec)
        if record.state.ended and start is None:
            raise NotResumableError(f"job {name} ended ({record.state}) without a checkpoint: launch anew")
        setup = provider_setup(request, spec, journal)
        check_nodes(request, setup.spec or spec)
        data = data_of(request, setup.here)
        if not journal.take_over(record, os.getpid(), request.as_json()):
            raise NotResumableError(f"job {name} is being resumed by another process: parcae status {name}")
    except BaseException:
        journal.close()
        raise
    return _carry_out(request, journal, lambda: _Job(request, spec, setup, journal, start, data, watch, past))


def _carry_out(request: LaunchRequest, journal: Journal, make: Callable[[], _Job]) -> JobResult:
    state: JobState | None = JobState.FAILED
    result: JobResult | None = None
    try:
        job = make()
        result = asyncio.run(job.run())
        state = JobState(result.state)
        return result
    except _NotBegunError as error:
        state = None  # as it was: it may be tried again
        raise error.why from None
    except KeyboardInterrupt:
        state = JobState.INTERRUPTED
        raise
    finally:
        if state is not None:
            journal.set_job_state(request.name, state, result.as_json() if result else None)
        journal.close()


def check_nodes(request: LaunchRequest, spec: ModelSpec) -> None:
    """Refuse a job that could never begin, with the arithmetic.

    Raises:
        InputError: no layout fits the model's device, or none of so few nodes.
    """
    gpus = request.gpus
    if request.policy == "redundancy":
        redundant_layout(spec, request.nodes)
    if estimated_profile(spec, request.nodes * gpus).layouts:
        return
    more = estimated_profile(spec, max(request.nodes, MOST_NODES_TRIED) * gpus)
    why = more.why_nothing_fits(request.nodes, gpus)
    if more.fewest_nodes is None:
        raise InputError(why)
    raise InputError(f"{why}; give --nodes {instances_needed(more.layouts[0], gpus)} or more")


def read_start(request: LaunchRequest, spec: ModelSpec) -> Checkpoint | None:
    """The checkpoint that the job continues, if it is told to.

    Raises:
        InputError: it is not whole, is of another model, or has all the steps already.
    """
    if request.start_from is None:
        return None
    start = _read_checkpoint(request.start_from, spec)
    check_continues(start, request.start_from, spec, request.seed)
    if start.step >= request.steps:
        raise InputError(
            f"{request.start_from}: stands at step {start.step}; give --steps above that, not {request.steps}"
        )
    return start


def newest_state(request: LaunchRequest, spec: ModelSpec) -> Checkpoint | None:
    """The newest state of a job that is safe on disk: its own last checkpoint, or the one that it began with.

    Raises:
        InputError: it is not whole, or of another model.
    """
    if request.checkpoint is not None and not target_of(request.checkpoint).empty():
        return _read_checkpoint(request.checkpoint, spec)
    return None if request.start_from is None else _read_checkpoint(request.start_from, spec)


def _read_checkpoint(path: str, spec: ModelSpec) -> Checkpoint:
    start = target_of(path).read()
    sizes = {layer: len(blob) // STATE_BYTES_PER_PARAM for layer, blob in start.layers.items()}
    if sizes != {layer: wanted.params for layer, wanted in enumerate(spec.layers)}:
        raise InputError(
            f"{path}: holds {len(sizes)} layers of {sum(sizes.values()):,} parameters; "
            f"{spec.name} has {len(spec.layers)} of {spec.state_params:,}"
        )
    return start


class _NotBegunError(Exception):
    """A job could not be taken over, and everything is as it was."""

    def __init__(self, why: Exception) -> None:
        super().__init__(str(why))
        self.why = why


class _Job:
    def __init__(
        self,
        request: LaunchRequest,
        spec: ModelSpec,
        setup: ProviderSetup,
        journal: Journal,
        start: Checkpoint | None,
        data: DataSet | None,
        watch: Watch | None,
        past: Past | None = None,
    ) -> None:
        self._past = past
        self._request, self._spec, self._journal = request, setup.spec or spec, journal
        self._setup, self._start = setup, start
        self._data = data
        self._wanted = setup.wanted or request.nodes
        self._token = job_token(journal.job_folder(request.name))
        self._bill = Bill(setup.time_scale)
        self._bill.anchor(request.anchor_usd_per_hour, request.anchor_since_s)
        provider: SpotProvider = setup.provider
        on_step = (lambda step: watch(step, provider)) if watch else None
        self._first_step = start.step if start else 0
        self._restarts = request.policy == "checkpoint"
        self._recorder = Recorder(request, journal, self._bill, self._first_step, on_step, past)

    async def run(self) -> JobResult:
        request = self._request
        backup = self._backup()
        keeper = CheckpointKeeper(
            request.checkpoint,
            1 if self._restarts else request.checkpoint_every,  # then what is pushed is meant for the disk
            request.checkpoint_keep,
            request.seed,
            request.template,
            backup,
            self._recorder.event,
        )
        resumed = self._past is not None and request.checkpoint
        keeper.start_from(self._first_step, resumed or request.start_from)
        self._recorder.backup.status = lambda: backup.status
        if self._first_step:
            await asyncio.to_thread(backup.wait_for, self._first_step, LAST_COPY_TIMEOUT_S)
        setup = self._setup
        fleet = Fleet(
            setup.provider,
            self._journal,
            request.name,
            self._wanted,
            times=setup.link_times,
            poll_s=setup.poll_s,
            agent_start=sent_before(setup.agent_start, self._data, self._recorder),
            anchor=None if setup.anchor_reachable else backup.address,
            before=None if self._past is None else Inheritance(self._past.living, tuple(self._past.tokens)),
            gpus=setup.gpus,
            doors=self._journal.job_folder(request.name) / DOORS,
        )
        # The controller's clock is the wall's, so intervals shrink with the trace's speed.
        prior = setup.prior
        if isinstance(setup.provider, TellsMarket):
            pools = [one.key for one in setup.provider.tallies()]
            prior = known_rates(self._journal, request.cloud, pools, prior)
        config = planner_config(request, self._spec, self._wanted, setup.time_scale, prior)
        capacity = CapacityWatch(
            self._journal, request.name, request.cloud, setup.provider, self._wanted,
            lambda prices: self._bill.reprice(prices, time.time()),
        )  # fmt: skip
        config = replace(config, forecaster=capacity.bend(config.forecaster))
        self._recorder.market = lambda: capacity.now
        for pool in (*setup.market, *([] if prior is None else [in_words(prior)])):
            self._recorder.event("market", pool)
        training = self._training()
        resumption = None
        if self._past is not None:
            resumption = Resumption.of(self._past, training.first_step, len(self._spec.layers))
        coordinator = (RestartingCoordinator if self._restarts else Coordinator)(
            training, config, fleet, backup, self._recorder, keeper, setup.start_clock, resumption
        )
        loop = asyncio.get_running_loop()
        interruption = StopRequest(JobState.INTERRUPTED, "interrupted by the user")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, coordinator.request_stop, interruption)
        state, why, digest = JobState.INTERRUPTED, "", None
        if self._past is not None:
            try:
                await fleet.start()
            except CloudError as error:
                backup.close()
                raise _NotBegunError(error) from error
        try:
            if self._past is None:
                await fleet.start()
            capacity.start()
            await asyncio.to_thread(_warm_up, config)
            if not setup.clock_waits:
                setup.start_clock()
            digest = await coordinator.run()
            if coordinator.stopped is None:
                state = JobState.DONE
            else:
                state, why = coordinator.stopped.state, coordinator.stopped.why
        except TrainingError as error:
            state, why = JobState.FAILED, str(error)
            self._recorder.event("failed", "the job ended", why)
        except CloudError as error:
            state = JobState.FAILED
            self._recorder.event("failed", "the job ended", str(error))
            raise
        finally:
            await capacity.stop()
            self._recorder.ending()
            try:
                if digest is not None:
                    timeout_s = LAST_COPY_TIMEOUT_S if state is JobState.DONE else DRAIN_S
                    await keeper.collect(coordinator.ledger.committed_steps, timeout_s)
                if state is JobState.DONE:
                    await keeper.finish()  # what was paid for comes first
                await fleet.stop()
                for instance in fleet.instances():
                    self._recorder.instance(instance)
            except MaybeStillRunningError as error:
                self._recorder.event("trouble", "something may still be running", str(error))
                raise
            finally:
                await keeper.finish()
                self._recorder.ended(state)
                backup.close()
        return self._result(coordinator, state, digest, why)

    def _backup(self) -> BackupProcess | NoBackup:
        request = self._request
        if request.backup == "none":
            return NoBackup()

        def origin() -> tuple[int, Mapping[int, bytes | bytearray]]:
            # The first backup is given what has been read; a later one reads it again.
            start, self._start = self._start, None
            start = start or newest_state(request, self._spec)
            assert start is not None
            return start.step, start.layers

        return BackupProcess(
            len(self._spec.layers),
            self._token,
            self._journal.job_folder(request.name),
            request.backup == "gradients",
            origin if self._first_step else None,
        )

    def _training(self) -> Training:
        request = self._request
        return Training(
            model=self._spec,
            model_template=dict(request.template),
            steps=request.steps,
            seed=request.seed,
            corpus=self._data.node_paths if self._data else [str(path) for path in request.corpus],
            token=self._token,
            interval_s=request.interval_s / self._setup.time_scale,
            backup_every=request.backup_every,
            copy_ahead=request.copy_ahead,
            exact=request.exact,
            learns=not self._setup.here,
            lame_s=self._setup.link_times.lame_s,
            unready_s=self._setup.link_times.unready_s,
            backup=request.backup,
            checkpoint_every=request.checkpoint_every,
            first_step=self._first_step,
            faults=[dict(fault) for fault in request.faults],
        )

    def _result(self, coordinator: Coordinator, state: JobState, digest: str | None, why: str) -> JobResult:
        recorder, ledger = self._recorder, coordinator.ledger
        usd, usd_on_demand = self._bill.spent_now()
        return JobResult(
            job=self._request.name,
            state=str(state),
            steps=ledger.committed_steps,
            samples=ledger.samples,
            samples_lost=ledger.samples_lost,
            samples_repeated=ledger.samples_repeated,
            final_loss=recorder.final_loss,
            weights_sha256=digest,
            wall_s=recorder.wall_s,
            usd=usd,
            migrations=tuple(recorder.migrations),
            usd_on_demand=usd_on_demand,
            why=why,
            eval_loss=recorder.eval_loss,
            steps_redone=ledger.steps_done_again,
            time_lost_s=recorder.time_lost_s,
            backup=recorder.backup.as_json(),
        )


def _warm_up(config: ControllerConfig) -> None:
    """Load what planning imports at its first use: later it would hold up a decision for half a second."""
    import scipy.optimize  # noqa: F401

    config.forecaster.forecast(tuple(range(2, config.history + 2)), config.lookahead, 0.0)
    config.planner.warm_up(config.max_nodes)
