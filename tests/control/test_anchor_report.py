"""What an anchor tells of a job's files: what is new, or all of a file that was cut off meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.control.anchor.report import digest_before, report
from runtime.control.job.journal import Journal


@pytest.mark.parametrize("steps", [3, 3000])  # shorter and longer than what a file is known by
def test_a_file_comes_from_where_it_was_or_whole(tmp_path: Path, steps: int) -> None:
    """Lines that a rollback cut off and that were written again differ, though there are as many."""
    journal = Journal(tmp_path)
    journal.create_job("job", {}, 1)
    journal.close()
    metrics = tmp_path / "jobs" / "job" / "metrics.jsonl"
    first = "".join(f'{{"step": {step}, "time_s": {step}.5}}\n' for step in range(steps))
    metrics.write_text(first)
    size = len(first)
    have = {"files": {"metrics.jsonl": [size, digest_before(metrics, size)]}}

    assert report(tmp_path, "job", {})["files"] == {"metrics.jsonl": [0, first]}
    assert report(tmp_path, "job", have)["files"] == {}
    metrics.write_text(first + "more\n")
    assert report(tmp_path, "job", have)["files"] == {"metrics.jsonl": [size, "more\n"]}

    cut = first.splitlines(keepends=True)[:-1]
    metrics.write_text("".join(cut))
    assert report(tmp_path, "job", have)["files"] == {"metrics.jsonl": [0, "".join(cut)]}
    again = "".join(cut) + first.splitlines(keepends=True)[-1].replace(".5", ".9") + "more\n"
    metrics.write_text(again)
    assert report(tmp_path, "job", have)["files"] == {"metrics.jsonl": [0, again]}
