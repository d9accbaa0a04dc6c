"""Latency of the way to the workers: `python tests/control/fleet_bench.py [nodes]` (not a test)."""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from cloud.local.provider import LocalProvider
from cloud.local.schedule import Schedule
from runtime.control.fleet.fleet import Fleet, WorkerJoined, WorkerMessage


async def main(nodes: int) -> None:
    """Print the boot time, and round trips to one worker and to all."""
    root = Path(tempfile.mkdtemp())
    environment = {"PARCAE_ENGINE": "stub_worker", "PYTHONPATH": f"{Path.cwd()}:{Path(__file__).parent}"}
    provider = LocalProvider("bench", root, Schedule.constant(nodes), environment=environment)
    fleet = Fleet(provider, None, "bench", nodes)
    start_s = time.perf_counter()
    await fleet.start()
    names: list[str] = []
    while len(names) < nodes:
        event = await fleet.events.get()
        if isinstance(event, WorkerJoined):
            names.append(event.node)
    print(f"{nodes} workers joined after {time.perf_counter() - start_s:.2f} s")
    for count in (1, nodes):
        for size in (100, 2000):
            rounds, took_s, cpu_s = 400, [], time.process_time()
            for _ in range(rounds):
                sent_s = time.perf_counter()
                for name in names[:count]:
                    fleet.send(name, {"t": "echo", "text": "x" * size})
                left = count
                while left:
                    left -= isinstance(await fleet.events.get(), WorkerMessage)
                took_s.append(time.perf_counter() - sent_s)
            cpu_us = (time.process_time() - cpu_s) / rounds / count * 1e6
            p95 = sorted(took_s)[int(0.95 * rounds)] * 1e3
            print(
                f"{count} nodes, {size} B: median {statistics.median(took_s) * 1e3:.2f}, p95 {p95:.2f} ms, "
                f"{cpu_us:.0f} us CPU of this process per round trip"
            )
    start_s = time.perf_counter()
    await fleet.stop()
    print(f"stopped in {time.perf_counter() - start_s:.2f} s")


asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8))
