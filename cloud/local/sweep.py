"""Ending what a local fleet left behind, from another process, after its launcher was killed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cloud.local.node import remove_folder
from cloud.processes import Fate, ProcessRecord, Register, is_alive, wait_until_gone

_GONE_WITHIN_S = 3.0
_ROUNDS = 3
_BETWEEN_ROUNDS_S = 0.1


@dataclass(frozen=True)
class SweptProcess:
    """A recorded process group: its node's folder, its role (agent, worker, command, zygote), its number."""

    node: str
    role: str
    pid: int


def sweep(folder: Path) -> tuple[tuple[SweptProcess, ...], tuple[SweptProcess, ...]]:
    """SIGKILL every process group on record below `folder` (one job's, or the root of all).

    Returns:
        Those that were killed and are gone, and those of which that cannot be said: not ours to signal,
        still there after 3 s, or without a leader and working elsewhere. A number that the kernel has given
        to another process since (its start time differs) counts as ended. Folders of nodes without a
        doubtful process are removed, so a second sweep finds nothing.
    """
    killed: dict[ProcessRecord, SweptProcess] = {}
    doubtful: dict[ProcessRecord, SweptProcess] = {}
    registers = [Register(path) for path in sorted(folder.rglob("pgids"))]
    for register in registers:
        register.close()
    # A process that was about to enter sees the closed register and leaves; later rounds find the ones that
    # entered in that very moment.
    for number in range(_ROUNDS if registers else 0):
        if number:
            time.sleep(_BETWEEN_ROUNDS_S)
        for register in registers:
            for record, fate in register.kill().items():
                swept = SweptProcess(register.path.parent.name, record.role, record.pid)
                if fate is Fate.KILLED:
                    killed[record] = swept
                elif fate is Fate.DOUBTFUL:
                    doubtful[record] = swept
                else:  # what was about to end, and could not be looked at, has ended
                    doubtful.pop(record, None)
    for record in wait_until_gone(killed, _GONE_WITHIN_S):
        doubtful[record] = killed.pop(record)
    for record in [record for record in killed if record in doubtful and not is_alive(record)]:
        del doubtful[record]
    for register in registers:
        if not any(record in doubtful for record in register.records()):
            remove_folder(register.path.parent)
    return tuple(killed.values()), tuple(doubtful.values())
