"""Process groups on record, so that whoever comes later can end exactly those and nothing else.

A process that becomes a group leader enters itself in the register of its node: a file of lines `pid start
role`, where `start` is the kernel's start time in clock ticks (field 22 of /proc/PID/stat), so that a
number that was given to another process since is never mistaken for the old one. Closing a register leaves
a mark beside it. A newcomer writes its line first and looks for the mark second; whoever ends the node sets
the mark first and reads the lines second: one of the two always sees the other, so nothing slips through
between.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class Fate(StrEnum):
    """What became of a recorded process group."""

    KILLED = "killed"
    GONE = "gone"
    DOUBTFUL = "doubtful"


@dataclass(frozen=True)
class ProcessRecord:
    """One process group leader. `start_ticks` is 0 where the kernel could not be asked."""

    pid: int
    start_ticks: int
    role: str


@dataclass(frozen=True)
class _Stat:
    state: str
    group: int
    start_ticks: int


def _stat(pid: int) -> _Stat | None:
    """What /proc says about a process, None if there is none of that number."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in brackets and may itself hold spaces and brackets.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(fields[0], int(fields[2]), int(fields[19]))


def start_ticks(pid: int) -> int | None:
    """The start time of a living process in clock ticks since boot; None if it has ended (zombies have)."""
    stat = _stat(pid)
    return None if stat is None or stat.state in "ZX" else stat.start_ticks


def is_alive(record: ProcessRecord) -> bool:
    """Whether that very process still runs, not another one of the same number."""
    return start_ticks(record.pid) == record.start_ticks


def _groups() -> dict[int, list[int]]:
    """The members of every process group, zombies left out."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            stat = _stat(int(entry.name))
            if stat is not None and stat.state not in "ZX":
                found.setdefault(stat.group, []).append(int(entry.name))
    return found


def kill_group(
    record: ProcessRecord, folder: Path | None = None, groups: Callable[[], dict[int, list[int]]] = _groups
) -> Fate:
    """SIGKILL a recorded group, if it is still the recorded one.

    A group whose leader has ended is killed only if all its members work inside `folder`; else it is
    doubtful.
    """
    leader = _stat(record.pid)
    try:
        if leader is not None and leader.state not in "ZX":
            if leader.start_ticks != record.start_ticks:
                return Fate.GONE
            if leader.group == record.pid:
                os.killpg(record.pid, signal.SIGKILL)
            else:
                os.kill(record.pid, signal.SIGKILL)
            return Fate.KILLED
        if leader is not None and leader.start_ticks != record.start_ticks:
            return Fate.GONE
        os.killpg(record.pid, 0)  # nobody in it: gone, and every process of the machine need not be looked at
        members = [pid for pid in groups().get(record.pid, ()) if start_ticks(pid) is not None]
        if not members:
            return Fate.GONE
        if folder is None or not all(_works_in(pid, folder) for pid in members):
            return Fate.DOUBTFUL
        os.killpg(record.pid, signal.SIGKILL)
        return Fate.KILLED
    except ProcessLookupError:
        return Fate.GONE
    except PermissionError:
        return Fate.DOUBTFUL


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder.resolve())
    except OSError:
        return False


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A short name for a socket's path: the kernel takes at most 107 bytes; users' folders may be deep."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Register:
    """The process groups of one node, in a file that outlives its writers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = path.with_name(path.name + ".closed")

    def enter(self, role: str, pid: int | None = None) -> bool:
        """Put a group leader on record (this process, by default).

        False: the node has ended, so leave at once.
        """
        pid = os.getpid() if pid is None else pid
        line = f"{pid} {start_ticks(pid) or 0} {role}\n".encode()
        with contextlib.suppress(FileNotFoundError):  # the folder is gone: so is the node
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        return self.path.exists() and not self._mark.exists()

    def close(self) -> None:
        """Leave the mark: nobody enters from now on."""
        with contextlib.suppress(FileNotFoundError):
            self._mark.touch()

    def records(self) -> list[ProcessRecord]:
        """Everyone who ever entered, in the last role it took. Broken lines (of a crash) are skipped."""
        try:
            lines = self.path.read_text().splitlines()
        except FileNotFoundError:
            return []
        found: dict[tuple[int, int], ProcessRecord] = {}
        for line in lines:
            pid, _, rest = line.partition(" ")
            ticks, _, role = rest.partition(" ")
            if pid.isdigit() and ticks.isdigit():
                one = ProcessRecord(int(pid), int(ticks), role)
                found.pop((one.pid, one.start_ticks), None)
                found[one.pid, one.start_ticks] = one
        return list(found.values())

    def kill(self) -> dict[ProcessRecord, Fate]:
        """Close the register and SIGKILL everyone in it. Does not wait for them to be gone."""
        self.close()
        return self.kill_roles()

    def kill_roles(self, *roles: str) -> dict[ProcessRecord, Fate]:
        """SIGKILL those in these roles (none named: all), and leave the register open."""
        folder = self.path.parent
        groups = functools.cache(_groups)  # looked up once at most, however many leaders have ended long ago
        chosen = [record for record in self.records() if not roles or record.role in roles]
        return {record: kill_group(record, folder, groups) for record in chosen}


def adopt_orphans() -> None:
    """Become the parent of descendants that lose theirs (Linux), so that `reap` can clear them away.

    Without this they go to process 1, which in many containers never reaps.
    """
    import ctypes

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap(records: Iterable[ProcessRecord]) -> None:
    """Clear away those that have ended and are our children; others are left alone. Never blocks."""
    for record in records:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(record.pid, os.WNOHANG)


def wait_until_gone(records: Iterable[ProcessRecord], timeout_s: float) -> list[ProcessRecord]:
    """Block until all have ended, at most `timeout_s`; returns those that have not."""
    left = list(records)
    deadline = time.monotonic() + timeout_s
    while left := [record for record in left if is_alive(record)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    return left
