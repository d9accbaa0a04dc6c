"""What sending data to new nodes costs those that train: lateness of the launcher's loop, and the speed.

    python benchmarks/delivery.py

Incompressible data goes to two real OpenSSH servers on this machine, at full speed (nobody trains) and paced
(others do), while something asks every 2 ms how late the loop is: that is what votes and commits would wait.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cloud.types import OwnSshTarget
from runtime.control.data_set import DataSet
from runtime.control.fleet import ssh
from runtime.control.fleet.delivery import Delivery
from tests.end_to_end.sshd import Rack, rack

PROJECT = Path(__file__).resolve().parents[1]
MEGABYTES, NODES, PERIOD_S = 48, 2, 0.002


async def lateness(found: list[float]) -> None:
    """Seconds by which the loop comes too late, until cancelled."""
    while True:
        due_s = time.perf_counter() + PERIOD_S
        await asyncio.sleep(PERIOD_S)
        found.append(time.perf_counter() - due_s)


async def measure(machines: Rack, data: DataSet, name: str, training: bool | None) -> None:
    """Send the data everywhere (None: nowhere, for two seconds), and print what came of it."""
    late: list[float] = []
    python = f"env PYTHONPATH={PROJECT} PARCAE_DATA=$HOME/{name} {sys.executable}"
    links = [await ssh.connect(OwnSshTarget(one, config=str(machines.config))) for one in machines.machines]
    watch = asyncio.create_task(lateness(late))
    began_s = time.perf_counter()
    if training is None:
        await asyncio.sleep(2.0)
    else:
        delivery = Delivery(data, lambda *words: None, lambda: training)
        await asyncio.gather(*(delivery(link, python, f"n{index}") for index, link in enumerate(links)))
    took_s = time.perf_counter() - began_s
    watch.cancel()
    if training is not None:
        there = [
            machine.home / name / path for machine in machines.machines.values() for path in data.node_paths
        ]
        assert all(path.stat().st_size == data.size_bytes and not path.is_symlink() for path in there)
    for link in links:
        link.close()
    late.sort()
    speed = (
        f"{len(links) * data.size_bytes / 1e6 / took_s:6.1f} MB/s" if training is not None else "nothing sent"
    )
    print(
        f"{name:12s} {speed:>13s}  loop late by median {late[len(late) // 2] * 1e3:.1f} ms, "
        f"99 % {late[int(len(late) * 0.99)] * 1e3:.1f} ms, longest {late[-1] * 1e3:.1f} ms"
    )


def main() -> None:
    """Three rows: idle, full speed, paced."""
    raw = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=raw).parse_args()
    with tempfile.TemporaryDirectory() as folder, rack(Path(folder) / "rack") as machines:
        # a name that leads nowhere on the nodes, which are this very machine
        os.chdir(folder)
        Path("noise.bin").write_bytes(os.urandom(MEGABYTES * 1_000_000))
        data = DataSet.of_paths([Path("/proc/self/cwd/noise.bin")])
        for index in range(NODES):
            machines.add(f"node{index}")
        for name, training in (("idle", None), ("full-speed", False), ("paced", True)):
            asyncio.run(measure(machines, data, shlex.quote(name), training))


if __name__ == "__main__":
    main()
