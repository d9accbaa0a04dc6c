"""The local picture of a job at an anchor, when whoever draws it is killed in the middle."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloud.anchor import AnchorRecord, BootFiles
from cloud.types import SshTarget
from runtime.control.anchor import mirror as mirroring
from runtime.control.anchor.report import report
from runtime.control.job.journal import Journal

JOB = "job"


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the product catches it."""


class BothEnds:
    """A job in the journal of an anchor, and the journal here that mirrors it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.there = Journal(folder / "here"), Journal(folder / "there")
        for journal in (self.here, self.there):
            journal.create_job(JOB, {"anchor": "cloud"}, os.getpid())
        target = SshTarget("127.0.0.1", 1, "u", "", "")
        record = AnchorRecord(
            "a-1", "small", "z", 0.1, 1.0, target, "python", BootFiles("r", "f", "l"), "lease", "sources"
        )
        record.write(self.here.anchor_folder(JOB))
        monkeypatch.setattr(mirroring, "ask", lambda _, __, have: report(self.there.home, JOB, have))

    def happens(self, *steps: int) -> None:
        """Training reaches each step, and says so in the events and in the metrics."""
        for step in steps:
            self.there.event(JOB, 100.0 + step, "step", f"step {step}")
            with (self.there.job_folder(JOB) / "metrics.jsonl").open("a") as file:
                file.write(f'{{"step": {step}}}\n')

    def said(self) -> list[str]:
        """What the events here tell."""
        return [event.text for event in self.here.events(JOB, 100)]

    def metrics(self) -> list[str]:
        """The metrics of both ends."""
        return [(one.job_folder(JOB) / "metrics.jsonl").read_text() for one in (self.here, self.there)]

    def close(self) -> None:
        """Both journals."""
        self.here.close()
        self.there.close()


def _before_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "write_private", _killed)


def _while_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _killed)


def _after_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    write = Journal.event

    def event(self: Journal, *about: Any) -> None:
        write(self, *about)
        raise Killed

    monkeypatch.setattr(Journal, "event", event)


def _killed(*_: object) -> None:
    raise Killed


@pytest.mark.parametrize("moment", [_before_counting, _while_counting, _after_an_event])
@pytest.mark.parametrize("first", [True, False], ids=["at the first look", "at a later one"])
def test_who_is_killed_while_mirroring_leaves_what_the_next_one_completes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: Callable[[pytest.MonkeyPatch], None],
    first: bool,
) -> None:
    """Nothing is half there, nothing is told twice, and nothing is missing."""
    ends = BothEnds(tmp_path, monkeypatch)
    if not first:
        ends.happens(0)
        mirroring.mirror(ends.here, JOB)
    ends.happens(1, 2)
    with monkeypatch.context() as struck:
        moment(struck)
        with pytest.raises(Killed):
            mirroring.mirror(ends.here, JOB)
    ends.here.event(JOB, 150.0, "trouble", "the anchor is out of reach")
    ends.happens(3)
    assert mirroring.mirror(ends.here, JOB).began
    mirroring.mirror(ends.here, JOB)
    said = [text for text in ends.said() if text.startswith("step")]
    assert said == [f"step {step}" for step in range(1 if first else 0, 4)]
    assert "the anchor is out of reach" in ends.said()
    here, there = ends.metrics()
    assert here == there
    ends.close()
