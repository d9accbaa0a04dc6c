"""`make paper`: the paper's table beside ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "make paper needs the paper's trace, which is not shipped: make paper TRACE="),
        (("nowhere.csv",), "nowhere.csv: there is no such file"),
        (("templates/traces/demo-8.csv",), "has 16 minutes; the segments need 660"),
    ],
)
def test_without_the_papers_trace_one_line_says_so(arguments: tuple[str, ...], said: str) -> None:
    """No trace, no such file, or one too short for the segments."""
    done = subprocess.run(
        [sys.executable, "benchmarks/paper.py", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and len(done.stderr.splitlines()) == 1
