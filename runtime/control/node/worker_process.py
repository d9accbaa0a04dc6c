"""A worker as its agent sees it: a process group at the far end of a socket pair. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cloud.processes import ProcessRecord, kill_group, short_path, start_ticks

# A look-up of one's own address can stall for seconds where there is no name server; and one thread a
# worker, unless the user says otherwise.
_DEFAULTS = {
    "RES_OPTIONS": "timeout:1 attempts:1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
    # A dead peer must not end the process: torch's watchdog would, and its monitor if an abort takes long.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
    "TORCH_NCCL_ENABLE_MONITORING": "0",
    "TORCH_NCCL_NONBLOCKING_TIMEOUT": "20",  # seconds, as `groups.GROUP_TIMEOUT`
}


@dataclass(frozen=True)
class WorkerPlan:
    """How a worker is started: in `folder`, its output in `log`, by the zygote at `zygote` if any.

    It is for number `gpu` of the node's `gpus` GPUs.
    """

    folder: Path
    log: Path
    register: Path
    engine: str
    zygote: Path | None
    gpu: int = 0
    gpus: int = 1

    @property
    def where(self) -> str:
        """Which GPU, in words, where there are several."""
        return f" of GPU {self.gpu}" if self.gpus > 1 else ""


def worker_environment(environment: Mapping[str, str], plan: WorkerPlan) -> dict[str, str]:
    """The agent's environment with what every worker needs; what the node sets itself stands.

    Of several GPUs a worker sees one, and none that the node's own CUDA_VISIBLE_DEVICES forbids: where that
    names too few, workers share.
    """
    made = {**_DEFAULTS, **environment, "PARCAE_REGISTER": str(plan.register)}
    if plan.gpus > 1:
        names = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
        allowed = [name for name in names if name] or [str(gpu) for gpu in range(plan.gpus)]
        made["CUDA_VISIBLE_DEVICES"] = allowed[plan.gpu % len(allowed)]
        made["LOCAL_RANK"] = str(plan.gpu)
    return made


class WorkerProcess:
    """One incarnation. `control` is the agent's end; its end of file is the worker's death."""

    def __init__(self, incarnation: int, plan: WorkerPlan) -> None:
        self.incarnation = incarnation
        self.record: ProcessRecord | None = None
        self.nursery: socket.socket | None = None
        self._plan = plan
        self.control, far_end = socket.socketpair()
        self.control.setblocking(False)
        with far_end:
            if not self._ask_zygote(far_end):
                self._spawn(far_end)

    def _ask_zygote(self, far_end: socket.socket) -> bool:
        """Send the zygote our request; its answer is read by `born`. False: there is no zygote (any more)."""
        if self._plan.zygote is None:
            return False
        nursery = socket.socket(socket.AF_UNIX)
        try:
            with short_path(self._plan.zygote) as path:
                nursery.connect(path)
            request = {
                "folder": str(self._plan.folder),
                "log": str(self._plan.log),
                "engine": self._plan.engine,
                "environment": worker_environment(os.environ, self._plan),
            }
            # The descriptor travels with the first byte; the request may need several sends.
            text = repr(request).encode() + b"\n"
            socket.send_fds(nursery, [text[:1]], [far_end.fileno()])
            nursery.sendall(text[1:])
        except OSError:
            nursery.close()
            return False
        nursery.setblocking(False)
        self.nursery = nursery
        return True

    def born(self) -> None:
        """Read the zygote's answer, `pid start`. Without one, the worker's end of file tells the rest."""
        assert self.nursery is not None
        with contextlib.suppress(OSError, ValueError):
            pid, ticks = self.nursery.recv(64).split()
            self.record = ProcessRecord(int(pid), int(ticks), "worker")
        self.nursery.close()
        self.nursery = None

    def _spawn(self, far_end: socket.socket) -> None:
        import subprocess

        command = [sys.executable, "-P", "-m", "parcae_cli.worker", "--control-fd", str(far_end.fileno())]
        with self._plan.log.open("ab") as log:
            process = subprocess.Popen(
                [*command, "--engine", self._plan.engine],
                cwd=self._plan.folder,
                env=worker_environment(os.environ, self._plan),
                pass_fds=(far_end.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process.returncode = 0  # its end is seen on the control socket; the kernel reaps it
        self.record = ProcessRecord(process.pid, start_ticks(process.pid) or 0, "worker")

    def send(self, data: bytes) -> int:
        """Write what fits now; the number of bytes taken. A dead worker takes nothing."""
        try:
            return self.control.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def kill(self) -> None:
        """SIGKILL the worker's group and let go of it.

        A worker not born yet sees its control socket close.
        """
        if self.nursery is not None:
            with contextlib.suppress(OSError):
                self.nursery.setblocking(True)
                self.nursery.settimeout(0.05)
            self.born()
        if self.record is not None:
            kill_group(self.record, self._plan.folder)
        self.control.close()


def ignore_children() -> None:
    """Let the kernel reap: an agent learns of a death by end of file, long before a wait could tell."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
