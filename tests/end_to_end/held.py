"""What processes hold while a job runs: to see whether anything grows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cloud.local.provider import LocalProvider


@dataclass(frozen=True)
class Held:
    """What a process holds: private memory in MB, threads, open files."""

    megabytes: float
    threads: int
    files: int

    @classmethod
    def by(cls, pid: int) -> Held:
        """What this process holds now.

        Raises:
            OSError: it has ended.
        """
        proc = Path(f"/proc/{pid}")
        status = (proc / "status").read_text()
        kilobytes = int(status.partition("RssAnon:")[2].split()[0])
        return cls(kilobytes / 1024, len(list((proc / "task").iterdir())), len(list((proc / "fd").iterdir())))


def pids_of(provider: LocalProvider, node: str, role: str) -> list[int]:
    """The processes of that role that were started on a living node, in order."""
    return [record.pid for record in provider.node(node).register.records() if record.role == role]
