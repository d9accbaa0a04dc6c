"""Jobs that live at an anchor, seen from here: begun, followed, gone on with, ended.

The launcher runs there; here is a journal entry, a mirror of its files, and the only hold on the anchor.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parcae_cli.errors import FailedError, Interrupted, MayBeRunning

if TYPE_CHECKING:
    from runtime.control.anchor.mirror import Seen
    from runtime.control.job.job import JobResult, LaunchRequest
    from runtime.control.job.journal import JobRecord, Journal

FOLLOW_S = 1.0
# How long the launcher there may take until the job is in its journal: it looks at the market first.
BEGIN_WITHIN_S = 180.0
# An anchor that is out of reach for so long may be gone: the API is asked.
ASK_API_AFTER_S = 30.0
DOWN_TIMEOUT_S = 660.0


def carry_out_at_anchor(request: LaunchRequest) -> JobResult:
    """Rent an anchor, begin the job there, and follow it to its end.

    Ctrl-C ends the job, and leaves nothing; SIGTERM ends the following alone, once the job has begun.

    Raises:
        Interrupted, FailedError: as the launcher at the anchor ended.
        CloudError, InputError: as for any launch.
    """
    from runtime.control.job.journal import JobState, Journal
    from runtime.control.providers import cloud_module
    from runtime.planning.model import parse_model

    journal = Journal(request.home)
    try:
        spec = parse_model(request.template, request.model)
        plan = cloud_module(request.cloud).anchor(request, spec, journal.job_folder(request.name))
        journal.create_job(request.name, request.as_json(), os.getpid())
        try:
            _begin(journal, request, plan)
        except BaseException as error:
            with undisturbed():
                state = JobState.INTERRUPTED if isinstance(error, KeyboardInterrupt) else JobState.FAILED
                try:
                    give_back(journal, request.name, request.cloud)
                finally:
                    journal.set_job_state(request.name, state)
            raise
        return follow(journal, request.name, request.cloud)
    finally:
        journal.close()


def _begin(journal: Journal, request: LaunchRequest, plan: Any) -> None:
    from runtime.control.anchor.remote import ask, bring_up

    name = request.name

    def event(text: str, why: str = "") -> None:
        journal.event(name, time.time(), "anchor", text, why)

    event(f"renting an anchor: {plan.kind} in {plan.zone}", f"{plan.usd_per_hour:g} USD an hour, on demand")
    record = plan.rent()
    event(f"the anchor is {record.id} in {record.zone}")
    record = bring_up(record, plan.boot_s)
    record.write(journal.anchor_folder(name))
    there = replace(
        request,
        anchor="here",
        anchor_usd_per_hour=record.usd_per_hour,
        anchor_since_s=record.launched_s,
        fleet=dict(plan.fleet),
    )
    order = json.dumps({"request": there.as_json(), "linger_s": plan.linger_s})
    ask(record, "receive", {"files": {**plan.files, "request.json": order}})
    _start_work(journal, name)
    event("the launcher has begun at the anchor", "training goes on without this machine")


def _start_work(journal: Journal, name: str, begun: Callable[[Seen], bool] = lambda seen: seen.began) -> None:
    """Start the launcher there, and return when the job is its own.

    Raises:
        FailedError: it ended before that, or did not begin.
    """
    from cloud.anchor import AnchorRecord
    from runtime.control.anchor.remote import begin

    record = AnchorRecord.read(journal.anchor_folder(name))
    assert record is not None
    begin(record, f"work {name}")
    _wait_for_work(journal, name, begun)


def _wait_for_work(journal: Journal, name: str, begun: Callable[[Seen], bool]) -> None:
    from runtime.control.anchor.mirror import mirror

    deadline_s = time.monotonic() + BEGIN_WITHIN_S
    while not begun(seen := mirror(journal, name)):
        _raise_problem(name, seen.problem)
        if time.monotonic() > deadline_s:
            raise FailedError(f"job {name} has not begun at its anchor in {BEGIN_WITHIN_S:.0f} s")
        time.sleep(FOLLOW_S / 4)


def _raise_problem(name: str, problem: Mapping[str, Any] | None) -> None:
    """What went wrong there, with the exit code that it has there; None: nothing did."""
    if problem is not None:
        failed = FailedError(f"job {name}, at its anchor: {problem['line']}")
        failed.exit_code = int(problem["code"])
        raise failed


def _given_back(journal: Journal, name: str) -> bool:
    return (journal.anchor_folder(name) / "ended").exists()


def follow(journal: Journal, name: str, cloud: str) -> JobResult:
    """Keep the local picture fresh until the job has ended, then fetch all and give the anchor back.

    Raises:
        Interrupted: told to stop following.
        FailedError: the anchor is gone, or the launcher there broke off.
    """
    from runtime.control.anchor.mirror import mirror
    from runtime.control.anchor.remote import AnchorLostError

    def leave(*_: object) -> None:
        raise Interrupted(f"job {name} goes on at its anchor", f"See: parcae status {name}")

    signal.signal(signal.SIGTERM, leave)
    lost_s: float | None = None
    try:
        while True:
            try:
                seen = mirror(journal, name)
                lost_s = None
                if seen.ended:
                    break
                _raise_problem(name, seen.problem)  # it could not go on, and left everything as it was
                if seen.began and not seen.launcher_alive:
                    raise FailedError(
                        f"job {name}: its launcher at the anchor died", f"Try: parcae resume {name}"
                    )
            except AnchorLostError as error:
                if lost_s is None:
                    lost_s = time.monotonic()
                    journal.event(name, time.time(), "trouble", "the anchor is out of reach", str(error))
                if time.monotonic() - lost_s > ASK_API_AFTER_S:
                    lost_s = time.monotonic()
                    _end_if_gone(journal, name, cloud)
            time.sleep(FOLLOW_S)
    except KeyboardInterrupt:
        with undisturbed():
            end_at_anchor(journal, name, cloud)
    with undisturbed():
        return _finish(journal, name, cloud)


def _end_if_gone(journal: Journal, name: str, cloud: str) -> None:
    from cloud.provider import CloudError
    from runtime.control.job.journal import JobState
    from runtime.control.providers import cloud_module

    try:
        if cloud_module(cloud).anchor_lives(journal.anchor_folder(name)):
            return
    except CloudError:
        return  # this machine is off the net: nothing can be said
    with undisturbed():
        give_back(journal, name, cloud)
        journal.set_job_state(name, JobState.FAILED)
    raise FailedError(f"job {name}: its anchor is gone, and with it the launcher", "What it rented is ended")


def _finish(journal: Journal, name: str, cloud: str) -> JobResult:
    """The job has ended there: everything is fetched, then the anchor ends."""
    from cloud.provider import CloudError
    from runtime.control.anchor.mirror import mirror
    from runtime.control.job.job import JobResult
    from runtime.control.job.journal import JobState

    problem: Mapping[str, Any] | None = None
    try:
        seen = mirror(journal, name, logs=True)
        problem = seen.problem
    except CloudError as error:
        journal.event(name, time.time(), "trouble", "the last results could not be fetched", str(error))
    give_back(journal, name, cloud)
    record = journal.job(name)
    if not record.state.ended:
        journal.set_job_state(name, JobState.FAILED if problem else JobState.INTERRUPTED)
    if record.result is not None:
        return JobResult.from_json(record.result)
    _raise_problem(name, problem)
    raise Interrupted(f"job {name}; nothing of it is left running")


def end_at_anchor(journal: Journal, name: str, cloud: str) -> str:
    """Have the launcher there end the job and its fleet; empty, or why it could not be asked."""
    from cloud.anchor import AnchorRecord
    from cloud.provider import CloudError
    from runtime.control.anchor.mirror import mirror
    from runtime.control.anchor.remote import ask

    record = AnchorRecord.read(journal.anchor_folder(name))
    if record is None or not record.sources or _given_back(journal, name):
        return ""
    try:
        ask(record, f"down {name}", timeout_s=DOWN_TIMEOUT_S)
        mirror(journal, name, logs=True)
    except CloudError as error:
        return str(error)
    return ""


def give_back(journal: Journal, name: str, cloud: str) -> list[str]:
    """End the anchor, then whatever it has left: by tag, so it need not answer. The ids of what lived.

    The anchor goes first: it cannot rent anything more then.

    Raises:
        MaybeStillRunningError: the API did not say that all of it is gone.
    """
    from runtime.control.providers import cloud_module

    module = cloud_module(cloud)
    ended: list[str] = [f"anchor {one}" for one in module.end_anchor(journal.anchor_folder(name))]
    if ended:
        journal.event(name, time.time(), "anchor", "the anchor is given back", "the API calls it terminated")
    return [*ended, *(f"instance {one}" for one in module.sweep(journal.job_folder(name) / cloud))]


def waits_to_be_fetched(journal: Journal, record: JobRecord) -> bool:
    """Whether a job is done at an anchor that still costs money, with nobody left here who gives it back."""
    from runtime.control.job.journal import JobState

    done = record.at_anchor and record.state is JobState.DONE
    return done and not record.launcher_alive and not _given_back(journal, record.name)


def refresh(journal: Journal, name: str, logs: bool = False) -> None:
    """Before a job is shown: if it lives at an anchor, bring what is here up to date, or say why not."""
    from runtime.control.job.journal import UnknownJobError

    try:
        record = journal.job(name)
    except UnknownJobError:
        return
    if not record.at_anchor or _given_back(journal, name):
        return
    from cloud.provider import CloudError
    from runtime.control.anchor.mirror import mirror

    try:
        if mirror(journal, name, logs).ended and not record.launcher_alive:
            print(
                f"parcae: job {name} has ended; its anchor costs money until: parcae down {name}",
                file=sys.stderr,
            )
    except CloudError as error:
        print(f"parcae: {error}; this is what was known before", file=sys.stderr)


def goes_on_there(journal: Journal, record: JobRecord) -> bool:
    """Whether a living launcher at an anchor has the job.

    Raises:
        MayBeRunning: the anchor lives, and does not answer.
        CloudError: nor does the API.
    """
    from runtime.control.anchor.mirror import mirror
    from runtime.control.anchor.remote import AnchorLostError
    from runtime.control.providers import cloud_module

    if not record.at_anchor or _given_back(journal, record.name):
        return False
    try:
        seen = mirror(journal, record.name)
    except AnchorLostError as error:
        folder = journal.anchor_folder(record.name)
        if _was_begun(folder) and cloud_module(str(record.spec["cloud"])).anchor_lives(folder):
            raise MayBeRunning(str(error), f"End it: parcae down {record.name}") from error
        return False
    return seen.launcher_alive and not seen.ended


def resume_at_anchor(home: Path, name: str, changes: Mapping[str, Any]) -> JobResult:
    """Have the anchor go on with a job whose launcher there has died or ended, or just follow one that lives.

    Of a job that is done there the results are fetched, and the anchor is given back.

    Raises:
        FailedError: the anchor is gone, or there is nothing to go on with.
    """
    from cloud.anchor import AnchorRecord
    from runtime.control.anchor.mirror import mirror
    from runtime.control.anchor.remote import AnchorLostError, ask
    from runtime.control.job.journal import JobState, Journal

    journal = Journal(home)
    try:
        record = journal.job(name)
        cloud = str(record.spec["cloud"])
        folder = journal.anchor_folder(name)
        anchor = AnchorRecord.read(folder)
        if _given_back(journal, name):
            raise FailedError(
                f"job {name} has no anchor to go on at",
                "Launch anew; --from URL continues a checkpoint in an object store",
            )
        begun = anchor is not None and anchor.sources and _was_begun(folder)
        if anchor is None or not begun:
            raise _broken_off(journal, name, cloud)
        try:
            seen = mirror(journal, name)
        except AnchorLostError as error:
            raise FailedError(str(error), f"End what it left: parcae down {name}") from error
        if not seen.began:  # the launcher there may still look at the market
            try:
                _wait_for_work(journal, name, lambda now: now.began)
            except FailedError as error:
                raise _broken_off(journal, name, cloud, f" ({error})") from error
            seen = mirror(journal, name)
        if journal.job(name).state is JobState.DONE:
            with undisturbed():
                return _finish(journal, name, cloud)
        if seen.ended or not seen.launcher_alive:
            linger_s = record.spec["fleet"]["times"]["anchor_linger_s"]
            order = {"resume": True, "changes": dict(changes), "linger_s": linger_s}
            ask(anchor, "receive", {"files": {"request.json": json.dumps(order)}})
            _start_work(journal, name, lambda now: now.launcher_alive and not now.ended)
        elif changes:
            raise FailedError(f"job {name} runs: limits can be changed when it has ended")
        journal.take_over(record, os.getpid(), record.spec)
        return follow(journal, name, cloud)
    finally:
        journal.close()


def _was_begun(folder: Path) -> bool:
    """Whether a launcher was started at the anchor: the first thing that is done then is to ask how it is."""
    return (folder / "mirror.json").exists()


def _broken_off(journal: Journal, name: str, cloud: str, why: str = "") -> FailedError:
    """Of a launch that was killed before its launcher lived at the anchor: what it has rented is ended."""
    from runtime.control.job.journal import JobState

    with undisturbed():
        give_back(journal, name, cloud)
        journal.set_job_state(name, JobState.FAILED)
    return FailedError(
        f"job {name} never began at its anchor{why}, and what its launch had rented is ended", "Launch anew"
    )


@contextmanager
def undisturbed() -> Iterator[None]:
    """While something is given back, a second Ctrl-C does not break it off."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
