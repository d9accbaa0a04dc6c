"""The journal keeps what it is told, under many writers, across crashes and restarts."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from cloud.types import Instance, InstanceState, Pool
from runtime.control.job.journal import (
    JobExistsError,
    JobState,
    Journal,
    JournalError,
    UnknownJobError,
)

POOL = Pool("local-a", "local.cpu", 1, 0.918, 3.06)


@pytest.fixture
def journal(tmp_path: Path):
    """An open journal in a fresh home."""
    opened = Journal(tmp_path / "home")
    yield opened
    opened.close()


def test_a_job_is_found_again_after_the_file_is_opened_anew(journal: Journal) -> None:
    """What one process recorded about a job, another one reads."""
    journal.create_job("a", {"model": "gpt-tiny"}, os.getpid())
    journal.set_job_state("a", JobState.RUNNING)
    again = Journal(journal.home)
    record = again.job("a")
    again.close()
    assert (record.state, record.spec, record.ended_s) == (JobState.RUNNING, {"model": "gpt-tiny"}, None)
    assert record.launcher_alive


def test_a_second_job_of_the_same_name_is_refused(journal: Journal) -> None:
    """A name stands for one job for ever, ended or not."""
    journal.create_job("a", {}, os.getpid())
    journal.set_job_state("a", "done", {"steps": 1})
    with pytest.raises(JobExistsError, match="'a'"):
        journal.create_job("a", {}, os.getpid())


def test_a_name_that_leaves_its_folder_is_refused(journal: Journal) -> None:
    """Names become folders, so a path is no name."""
    for name in ("../a", "a/b", "", ".hidden", "x" * 64):
        with pytest.raises(ValueError, match="cannot name a job"):
            journal.create_job(name, {}, os.getpid())


def test_a_final_state_keeps_its_result_and_time(journal: Journal) -> None:
    """The end of a job is recorded once, with its result; a later state without result does not erase it."""
    journal.create_job("a", {}, os.getpid())
    journal.set_job_state("a", JobState.DONE, {"steps": 3})
    first = journal.job("a").ended_s
    journal.set_job_state("a", JobState.DONE)
    assert journal.job("a").result == {"steps": 3}
    assert journal.job("a").ended_s == first is not None


def test_an_unknown_job_is_an_error(journal: Journal) -> None:
    """Asking for or changing a job that is not there names it."""
    with pytest.raises(UnknownJobError, match="ghost"):
        journal.job("ghost")
    with pytest.raises(UnknownJobError, match="ghost"):
        journal.set_job_state("ghost", "running")


def test_an_ended_launcher_is_not_alive_even_if_its_pid_is(journal: Journal) -> None:
    """A pid counts only together with its start time."""
    journal.create_job("a", {}, os.getpid())
    with sqlite3.connect(journal.path) as db:
        db.execute("UPDATE jobs SET pid_start = pid_start - 1")
    assert not journal.job("a").launcher_alive


def test_an_intent_without_an_outcome_stays_open(journal: Journal) -> None:
    """A call that was about to be made is known until its outcome is; tokens are idempotent."""
    journal.intent("t1", "a", "request", 4)
    journal.intent("t1", "a", "request", 4)
    journal.intent("t2", "a", "request", 1)
    journal.outcome("t2", "1 rented")
    assert [(i.token, i.count) for i in journal.open_intents("a")] == [("t1", 4)]
    assert journal.open_intents("b") == []


def test_live_instances_are_those_not_terminated(journal: Journal) -> None:
    """An instance comes back as it was put, with its process groups."""
    one = Instance("i-1", "n1", "a", "t", POOL, InstanceState.RUNNING, 12.5)
    journal.put_instance("a", one, [123, 456])
    journal.put_instance("a", Instance("i-2", "n2", "a", "t", POOL, InstanceState.TERMINATED, 13.0))
    live = journal.instances("a", live_only=True)
    assert [(r.instance, r.pgids) for r in live] == [(one, (123, 456))]
    assert len(journal.instances()) == 2


def test_events_are_kept_in_order_and_in_the_jobs_file(journal: Journal) -> None:
    """The last events come oldest first, and events.jsonl has every one."""
    journal.create_job("a", {}, os.getpid())
    for k in range(30):
        journal.event("a", float(k), "lost", f"event {k}", "because")
    assert [e.text for e in journal.events("a", last=3)] == ["event 27", "event 28", "event 29"]
    lines = (journal.job_folder("a") / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["time_s"] for line in lines] == list(range(30))


def test_a_snapshot_replaces_the_one_before(journal: Journal) -> None:
    """Status always reads one whole picture, the last."""
    assert journal.read_snapshot("a") is None
    journal.snapshot("a", {"step": 1})
    journal.snapshot("a", {"step": 2})
    picture = journal.read_snapshot("a")
    assert picture is not None
    assert picture["step"] == 2
    assert picture["updated_s"] > 0


def test_two_hundred_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    """Eight processes with 25 threads each, every thread with a connection of its own, all write at once."""
    script = textwrap.dedent(
        """
        import sys, threading
        from pathlib import Path
        from runtime.control.job.journal import Journal
        home, who, failed = Path(sys.argv[1]), sys.argv[2], []
        def write(k):
            try:
                journal = Journal(home)
                for i in range(3):
                    journal.event("a", i, "kind", f"{who}.{k}.{i}")
                    journal.snapshot("a", {"who": who})
                journal.close()
            except BaseException as error:
                failed.append(repr(error))
        threads = [threading.Thread(target=write, args=(k,)) for k in range(25)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(failed); sys.exit(bool(failed))
        """
    )
    home = tmp_path / "home"
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(home), str(w)], stdout=subprocess.PIPE, text=True)
        for w in range(8)
    ]
    for writer in writers:
        said, _ = writer.communicate(timeout=60)
        assert writer.returncode == 0, said
    journal = Journal(home)
    texts = {event.text for event in journal.events("a", last=10_000)}
    journal.close()
    assert len(texts) == 8 * 25 * 3
    assert len((home / "jobs/a/events.jsonl").read_text().splitlines()) == 600


def test_threads_may_share_one_journal(journal: Journal) -> None:
    """One open journal serves several threads without mixing their transactions."""
    threads = [
        threading.Thread(target=lambda k=k: [journal.event("a", k, "x", f"{k}.{i}") for i in range(20)])
        for k in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(journal.events("a", last=1000)) == 160


def test_a_journal_that_is_none_says_so(tmp_path: Path) -> None:
    """A file that SQLite cannot read is named, with the way out."""
    (tmp_path / "journal.db").write_text("not a database, but long enough to be read as one" * 40)
    with pytest.raises(JournalError, match=r"journal\.db.*PARCAE_HOME"):
        Journal(tmp_path)
