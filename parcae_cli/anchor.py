"""`python -m parcae_cli.anchor`: what an anchor does for the machine that rented it.

`receive` takes files, `work` runs the job's launcher (or goes on with it), `report` tells what is new, `down`
ends the job. Each takes and prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from parcae_cli.errors import MayBeRunning, report
from parcae_cli.home import parcae_home


def main(arguments: Sequence[str] | None = None) -> int:
    """Do one thing; 0 if it was done. What goes wrong is one line, as for the command."""
    parser = argparse.ArgumentParser(prog="python -m parcae_cli.anchor", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("receive")
    for name in ("work", "report", "down"):
        commands.add_parser(name).add_argument("job")
    parsed = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if parsed.command == "work":
            return work(parcae_home(), parsed.job)
        told = json.loads(sys.stdin.read() or "{}")
        print(json.dumps(answer(parcae_home(), parsed.command, getattr(parsed, "job", ""), told)), flush=True)
        return 0
    except BaseException as error:  # noqa: BLE001  # whatever it is, the asker gets one line
        return report(error)


def answer(home: Path, command: str, job: str, told: dict[str, Any]) -> dict[str, Any]:
    """What one short command has to say."""
    if command == "receive":
        from cloud.private_file import write_private

        for name, text in told["files"].items():
            write_private(home / name, text)
        return {"received": sorted(told["files"])}
    if command == "report":
        from runtime.control.anchor.report import report as report_on

        return report_on(home, job, told)
    return down(home, job)


def work(home: Path, job: str) -> int:
    """Run the job's launcher to its end, keep what came of it for a while, and let the machine go.

    `request.json` says what to do: `request` is the job's; with `resume` it is gone on with, under `changes`.
    """
    from runtime.control.anchor.lease import Lease
    from runtime.control.anchor.report import PROBLEM
    from runtime.control.job.job import LaunchRequest
    from runtime.control.job.launch import resume, run

    order = json.loads((home / "request.json").read_text())
    lease = Lease(Path(os.environ["PARCAE_LEASE_FILE"]))
    problem = home / "jobs" / job / PROBLEM
    problem.unlink(missing_ok=True)
    code = 0
    try:
        if order.get("resume"):
            resume(home, job, **order.get("changes", {}))
        else:
            run(replace(LaunchRequest.from_json(order["request"]), home=home))
    except BaseException as error:  # noqa: BLE001  # it is told to whoever asks
        from cloud.private_file import write_private
        from parcae_cli.errors import describe

        code, line = describe(error)
        write_private(problem, json.dumps({"code": code, "line": line}))
        report(error)
    over = has_ended(home, job)
    if over:
        threading.Event().wait(order["linger_s"])
    # Whoever goes on with the job meanwhile holds the lease now. A launcher that could not even take the job
    # over leaves the machine to the one that will, or to the end of the lease.
    lease.release(end_machine=over and has_ended(home, job))
    return code


def has_ended(home: Path, job: str) -> bool:
    """Whether this very process has seen the job to its end, or it never began."""
    from runtime.control.job.journal import Journal, UnknownJobError

    journal = Journal(home)
    try:
        record = journal.job(job)
    except UnknownJobError:
        return True
    finally:
        journal.close()
    return record.state.ended and record.pid == os.getpid()


def down(home: Path, job: str) -> dict[str, Any]:
    """End the job and its fleet, as `parcae down` does.

    Raises:
        MayBeRunning: something may still be running.
    """
    from parcae_cli.commands.down import end_job
    from runtime.control.job.journal import Journal, UnknownJobError

    journal = Journal(home)
    try:
        ended = end_job(journal, journal.job(job))
    except UnknownJobError:
        return {}
    finally:
        journal.close()
    if ended.doubtful:
        raise MayBeRunning(f"may still be running: {', '.join(ended.doubtful)}")
    return asdict(ended)


if __name__ == "__main__":
    raise SystemExit(main())
