"""Process groups on record: exactly those are ended, and nobody slips through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.local.sweep import sweep
from cloud.processes import Fate, ProcessRecord, Register, is_alive, kill_group, start_ticks, wait_until_gone


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_recorded_process_is_killed_and_proven_gone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """Who entered the register is killed when it is closed; afterwards nobody may enter."""
    register = Register(tmp_path / "pgids")
    assert register.enter("worker", sleeper.pid)
    (record,) = register.records()
    assert is_alive(record)
    assert register.kill() == {record: Fate.KILLED}
    assert wait_until_gone([record], 2.0) == []
    assert not register.enter("worker")


def test_another_process_of_the_same_number_is_left_alone(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """A record whose start time differs is of a process that ended; its number's new owner is not touched."""
    ticks = start_ticks(sleeper.pid)
    assert ticks is not None
    old = ProcessRecord(sleeper.pid, ticks - 1, "worker")
    assert kill_group(old, tmp_path) is Fate.GONE
    (tmp_path / "pgids").write_text(f"{old.pid} {old.start_ticks} worker\nbroken line\n\n")
    assert sweep(tmp_path) == ((), ())
    assert sleeper.poll() is None


def test_children_of_a_dead_leader_are_killed_where_they_are_ours(tmp_path: Path) -> None:
    """A group whose leader has ended is ended if it works in the node's folder, and doubtful elsewhere."""
    script = "import subprocess; subprocess.Popen(['sleep', '60']); print(flush=True); input()"
    for home, fate in ((tmp_path, Fate.KILLED), (Path("/"), Fate.DOUBTFUL)):
        leader = subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=home,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert leader.stdout is not None
        leader.stdout.readline()
        record = ProcessRecord(leader.pid, start_ticks(leader.pid) or 0, "worker")
        leader.kill()
        leader.wait()
        assert kill_group(record, tmp_path) is fate
        if fate is Fate.DOUBTFUL:
            os.killpg(leader.pid, signal.SIGKILL)
        deadline_s = time.monotonic() + 2.0
        while kill_group(record, tmp_path) is not Fate.GONE:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)


def test_a_register_whose_folder_is_gone_lets_nobody_in(tmp_path: Path) -> None:
    """A node that was taken away has no folder; who comes late leaves."""
    assert not Register(tmp_path / "gone" / "pgids").enter("worker")


def test_entering_and_closing_never_miss_each_other(tmp_path: Path) -> None:
    """However a newcomer and the end of a node interleave, the newcomer leaves or is killed."""
    script = (
        "import sys, time; from pathlib import Path; from cloud.processes import Register\n"
        "if Register(Path(sys.argv[1])).enter('worker'): time.sleep(60)\n"
    )
    for delay_s in (0.0, 0.02, 0.03, 0.04, 0.06):
        folder = tmp_path / str(delay_s)
        folder.mkdir()
        register = Register(folder / "pgids")
        register.path.touch()
        late = subprocess.Popen([sys.executable, "-c", script, str(register.path)], start_new_session=True)
        time.sleep(delay_s)
        register.kill()
        assert late.wait(5.0) in (0, -signal.SIGKILL)


def test_what_was_about_to_end_is_not_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that cannot be looked at while it ends has ended at the next look: nothing may still run."""
    Register(tmp_path / "node" / "pgids").path.parent.mkdir()
    (tmp_path / "node" / "pgids").write_text("1 1 worker\n")
    fates = iter([Fate.DOUBTFUL, Fate.GONE, Fate.GONE])
    monkeypatch.setattr("cloud.processes.kill_group", lambda *rest: next(fates))
    assert sweep(tmp_path) == ((), ())


def test_a_process_has_the_role_that_it_took_last(tmp_path: Path) -> None:
    """What is forked to start an agent becomes it, and is one process on record."""
    register = Register(tmp_path / "pgids")
    assert register.enter("start") and register.enter("agent")
    assert [(record.pid, record.role) for record in register.records()] == [(os.getpid(), "agent")]
