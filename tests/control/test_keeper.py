"""When checkpoints are written, by itself: the backup here is what a disk and a process would say."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime.control.backup.keeper import CheckpointKeeper
from runtime.control.backup.process import BackupStatus


class Disk:
    """A backup that holds the state of `latest`, and whose writing fails for the steps in `bad`."""

    def __init__(self, *bad: int) -> None:
        self.status, self._bad = BackupStatus(), bad

    def hold(self, step: int) -> None:
        """A state has arrived."""
        self.status = BackupStatus(latest=step)

    def wait_for(self, step: int, timeout_s: float) -> bool:
        """See `Writer`."""
        return (self.status.latest or 0) >= step

    def write(
        self, target: str, seed: int, template: Mapping[str, Any], parameters: Sequence[Sequence[Any]]
    ) -> tuple[int, str]:
        """See `Writer`."""
        step = self.status.latest or 0
        if step in self._bad:
            raise OSError("the backup's process died")
        return step, f"{target}/step-{step}"

    def restore(self, target: str | None, generation: int) -> int:
        """See `Writer`."""
        step = int(target.rpartition("-")[2]) if target else 0
        self.hold(step)
        return step


async def until(keeper: CheckpointKeeper, condition: Callable[[], bool]) -> None:
    """Tick, as the coordinator's loop does at every turn, and let the keeper's task run."""
    async with asyncio.timeout(10):
        while not condition():
            keeper.tick()
            await asyncio.sleep(0.001)


def test_what_could_not_be_written_is_no_reason_after_the_job_went_back(tmp_path: Path) -> None:
    """Writing step 8 fails and waits for the next; back at step 5, step 6 is written as ever.

    A job that stops for a change stands still until that step is on the disk.
    """
    said: list[str] = []

    async def scene() -> None:
        disk = Disk(8)
        keeper = CheckpointKeeper(
            str(tmp_path), 1, 9, 1, {}, disk, lambda kind, text: said.append(f"{kind}: {text}")
        )
        disk.hold(5)
        await until(keeper, lambda: keeper.durable == 5)
        disk.hold(8)
        await until(keeper, lambda: said[-1].startswith("trouble: the checkpoint of step 8 could not"))
        keeper.tick()  # the same state is not tried again and again
        assert len(said) == 2
        assert keeper.reload(generation=3) == 5
        disk.hold(6)
        await until(keeper, lambda: keeper.durable == 6)

    asyncio.run(scene())
    assert [line.partition(":")[0] for line in said] == ["checkpoint", "trouble", "checkpoint"]
