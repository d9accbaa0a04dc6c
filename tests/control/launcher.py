"""A launcher to be killed: starts a fleet of 2, says `up` when all have joined, then waits."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from runtime.control.fleet.fleet import LinkTimes
from tests.control.fleets import local_fleet


async def main() -> None:
    """Run until killed."""
    times = LinkTimes(lease_s=float(sys.argv[2]))
    async with local_fleet(Path(sys.argv[1]), 2, times=times) as fleet:
        await fleet.joined(2)
        print("up", flush=True)
        await asyncio.Event().wait()


asyncio.run(main())
