"""`parcae status` and `parcae logs` read the journal and files alone, and fit every console."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from parcae_cli.job_status import JobStatus, NodeStatus, StatusReader
from parcae_cli.render.charts import bars, braille_curve, progress_bar
from parcae_cli.render.status import status_view
from runtime.control.job.journal import Journal
from tests.cli.conftest import Done
from tests.cli.picture import end_job, snapshot, write_job

Run = Callable[..., Done]


@pytest.fixture
def status(journal: Journal) -> JobStatus:
    """A job in full swing, as it is read."""
    write_job(journal, "demo")
    return StatusReader(journal, "demo").read()


def picture(status: JobStatus, width: int, height: int | None = None) -> str:
    """The picture as plain text."""
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(status_view(status, width, height))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_status_json_keeps_its_contract(parcae: Run, journal: Journal) -> None:
    """Every field of the contract is there, with its type, in exactly one object."""
    write_job(journal, "demo")
    done = parcae("status", "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    number = (int, float)
    for key, kind in {
        "job": str, "state": str, "step": int, "steps": int, "loss": number, "samples_per_s": number,
        "liveput": number, "layout": dict, "nodes": list, "availability": list, "forecast": list,
        "usd": number, "usd_per_hour": number, "usd_on_demand": number, "generation": int,
        "last_events": list,
    }.items():  # fmt: skip
        assert isinstance(found[key], kind), key
    assert found["layout"] == {"pipelines": 3, "stages": 2}
    assert set(found["nodes"][0]) >= {"name", "state", "position", "zone", "notice_deadline"}
    assert set(found["last_events"][0]) >= {"time_s", "kind", "text", "why"}
    assert found["spares"] == ["i9"]


def test_status_json_has_all_fields_before_the_first_snapshot(parcae: Run, journal: Journal) -> None:
    """A job that has just been created can already be looked at, in both forms."""
    journal.create_job("new", {"model": "gpt-tiny", "steps": 9}, os.getpid())
    found = json.loads(parcae("status", "new", "--json").out)
    assert (found["state"], found["step"], found["steps"], found["layout"]) == ("starting", 0, 9, None)
    assert "no layout yet" in parcae("status", "new", "--once").out


def test_status_without_jobs_says_what_to_do(parcae: Run, home: Path) -> None:
    """No journal is no error, and looking makes none."""
    done = parcae("status")
    assert done.code == 0
    assert "parcae launch gpt-tiny" in done.out
    assert json.loads(parcae("status", "--json").out) == {"job": None, "state": None}
    assert not home.exists()


def test_status_shows_the_job_that_goes_on_before_newer_ended_ones(parcae: Run, journal: Journal) -> None:
    """Without a name, a running job comes first, then the newest."""
    write_job(journal, "first")
    write_job(journal, "second")
    assert json.loads(parcae("status", "--json").out)["job"] == "second"
    end_job(journal, "second")
    assert json.loads(parcae("status", "--json").out)["job"] == "first"
    end_job(journal, "first")
    assert json.loads(parcae("status", "--json").out)["job"] == "second"


def test_status_of_an_unknown_job_lists_those_there_are(parcae: Run, journal: Journal) -> None:
    """A wrong name is answered with the right ones."""
    write_job(journal, "demo")
    done = parcae("status", "damo")
    assert done.code == 2
    assert "demo" in done.err


def test_the_picture_of_a_running_job_has_all_its_parts(status: JobStatus) -> None:
    """Layout, notice, spare, forecast, loss, money, changes and reasons are all on it."""
    for width in (80, 120):
        text = picture(status, width)
        for words in (
            "demo", "running", "3x2", "generation 9", "step 124 of 200", "62%", "stage 0: layers 0-3", "i1",
            "i4", "s left", "spare", "i9", "coming", "i12", "7 of 8 nodes", "forecast", "loss", "3.2131",
            "142.6", "liveput", "$0.0431", "$6.43/h", "$0.1437", "70%", "rollback (no warning)",
            "i8 will be taken", "no warning; stage 1 has no holder left",
        ):  # fmt: skip
            assert words in text, (width, words)


@pytest.mark.parametrize("width", [60, 80, 100, 108, 120, 160, 220])
def test_no_line_of_the_picture_is_wider_than_the_console(status: JobStatus, width: int) -> None:
    """Nothing is folded or runs over, in any state of the job, with few and with very many nodes."""
    many = tuple(NodeStatus(f"instance-{k}", "running", (k // 16, k % 16)) for k in range(40 * 16))
    for shown in (
        status,
        replace(status, layout=(40, 16), nodes=many, cuts=tuple((k,) for k in range(16))),
        replace(status, layout=None, cuts=(), nodes=(), availability=(), forecast=(), migrations=()),
        replace(status, state="done", ended_s=status.created_s + 7000),
        replace(status, availability=tuple(range(500)), forecast=(3.0,) * 60),
    ):
        lines = picture(shown, width).splitlines()
        assert max(map(len, lines)) <= width


def test_the_live_picture_fits_the_height_of_the_console(status: JobStatus) -> None:
    """On 80 x 40 and 120 x 36 nothing falls off the lower edge."""
    assert len(picture(status, 80, 40).splitlines()) <= 40
    assert len(picture(status, 120, 36).splitlines()) <= 36


def test_a_waiting_job_says_why(status: JobStatus) -> None:
    """Too few nodes is a state with a reason, not an error."""
    text = picture(replace(status, state="waiting", layout=None, why="needs at least 2 nodes, 1 here"), 80)
    assert "Waiting: needs at least 2 nodes, 1 here" in text


def test_a_job_whose_launcher_died_is_shown_as_abandoned(parcae: Run, journal: Journal) -> None:
    """A killed launcher cannot write an end: status sees that it is gone and says what to do."""
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_job(journal, "demo", pid=launcher.pid)
    assert "running" in parcae("status", "--once").out
    launcher.kill()
    launcher.wait(timeout=10)
    out = parcae("status", "--once").out
    assert "abandoned" in out
    assert "parcae down demo" in out
    assert json.loads(parcae("status", "--json").out)["launcher_alive"] is False


def test_an_ended_job_shows_its_result(parcae: Run, journal: Journal) -> None:
    """After the end the grid gives way to what came out."""
    write_job(journal, "demo", 200)
    end_job(journal, "demo")
    out = parcae("status").out
    for words in ("done", "0 lost, 0 trained twice", "9f2c9f2c", "2.9134", "$0.0712"):
        assert words in out


def test_piped_status_is_plain_text(parcae_process: Run, journal: Journal) -> None:
    """Without a terminal it prints once and ends, without escape codes; ASCII alone does not break it."""
    write_job(journal, "demo")
    done = parcae_process("status")
    assert (done.code, done.err) == (0, "")
    assert "\033" not in done.out
    assert parcae_process("status", PYTHONIOENCODING="ascii").code == 0


def test_the_live_view_ends_with_the_job(journal: Journal) -> None:
    """On a terminal it follows the job, and when the job ends it leaves the last picture and code 0."""
    write_job(journal, "demo", 200)
    main_end, terminal = pty.openpty()
    viewer = subprocess.Popen(
        [sys.executable, "-P", "-m", "parcae_cli.main", "status"],
        stdin=terminal, stdout=terminal, stderr=terminal,
        env=os.environ | {"COLUMNS": "100", "LINES": "40", "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    deadline_s = time.monotonic() + 30
    ended = False
    while time.monotonic() < deadline_s:
        if select.select([main_end], [], [], 0.2)[0]:
            try:
                seen += os.read(main_end, 65536)
            except OSError:  # Linux reports the end of a terminal as an error
                break
        if b"samples/s" in seen and not ended:
            ended = True
            end_job(journal, "demo")
    assert viewer.wait(timeout=10) == 0
    assert b"running" in seen
    assert b"trained twice" in seen
    os.close(main_end)


def test_status_follows_metrics_that_a_rollback_cuts(journal: Journal) -> None:
    """Lines that were taken back are forgotten, also when new ones are in their place; halves are left."""
    write_job(journal, "demo", 30)
    reader = StatusReader(journal, "demo")
    assert reader.read().curve.steps[-1] == 30
    path = journal.job_folder("demo") / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:20]))
    assert reader.read().curve.steps[-1] == 20
    path.write_text(
        "".join(lines[:10]) + "".join(lines[10:25]).replace('"loss": ', '"loss": 1') + '{"step": 2'
    )
    curve = reader.read().curve
    assert curve.steps == tuple(range(1, 26))


def test_a_picture_can_be_saved_as_svg(parcae: Run, journal: Journal, tmp_path: Path) -> None:
    """The picture of the README is made by the program itself."""
    write_job(journal, "demo")
    assert parcae("status", "--svg", tmp_path / "status.svg").code == 0
    assert "parcae&#160;status" in (tmp_path / "status.svg").read_text()


def test_logs_show_events_with_their_reasons_and_what_nodes_wrote(parcae: Run, journal: Journal) -> None:
    """Events come with their why, a node's log as it is; a wrong node is answered with those there are."""
    write_job(journal, "demo")
    (journal.job_folder("demo") / "logs" / "i1.log").write_text("first\nsecond\n")
    assert "(no warning; stage 1 has no holder left)" in parcae("logs").out
    assert parcae("logs", "demo", "i1", "--last", "1").out == "second\n"
    found = json.loads(parcae("logs", "demo", "--json").out)
    assert (found["job"], found["nodes"], len(found["events"])) == ("demo", ["i1"], 7)
    wrong = parcae("logs", "demo", "i2")
    assert wrong.code == 2
    assert "i1" in wrong.err


def test_charts_put_values_where_they_belong() -> None:
    """A falling curve starts upper left and ends lower right; bars fill by eighths; progress is clamped."""
    curve = braille_curve([3.0, 2.0, 1.0], 6, 3)
    assert [len(line) for line in curve] == [6, 6, 6]
    assert curve[0][0] != " "
    assert curve[0][-1] == " "
    assert curve[-1][-1] != " "
    assert bars([0, 4, 8], 8, 2) == ["  █", " ██"]
    assert bars([1], 8, 1) == ["▁"]
    assert braille_curve([], 3, 1) == ["   "]
    assert progress_bar(1.7, 4) == ("━━━━", "")


def test_the_example_job_matches_what_a_job_reports() -> None:
    """The pictures' example has the fields that status reads."""
    assert {"nodes", "layout", "availability", "forecast", "migrations"} <= set(snapshot(0.0))


def test_the_market_is_shown_where_a_job_has_one(status: JobStatus) -> None:
    """Price and its change, refused launches and the best placement scores; no line for a local fleet."""
    assert "market" not in picture(status, 120)
    market = {
        "spot_usd_per_hour": 0.3121, "price_change": 0.042, "launches_tried": 12, "launches_refused": 3,
        "scores": {"g5.xlarge/us-east-1a": 7.0, "g5.xlarge/us-east-1b": 9.0},
    }  # fmt: skip
    shown = picture(replace(status, market=market), 200)
    assert "spot from $0.3121/h (+4% since the start)" in shown
    assert "3 of 12 launches refused in the last hour" in shown
    assert "placement score 9 g5.xlarge/us-east-1b, 7 g5.xlarge/us-east-1a" in shown
    assert "and 1 more" in picture(replace(status, market=market), 60)


@pytest.mark.parametrize("width", [100, 120])
def test_changes_show_bytes_and_seconds(status: JobStatus, width: int) -> None:
    """What was copied ahead and what was sent at the switch, each with the time that it took."""
    shown = picture(status, width)
    assert "1.2 MB in 34 ms" in shown and "401.4 kB in 4 ms" in shown
