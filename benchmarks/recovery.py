"""Time lost to a death without notice: Parcae, torchrun's elastic launch with checkpoints, and torchft.

All train gpt-tiny's shape and mini-batch on as many workers of this machine; workers are killed by pid
(SIGKILL) after the same steps. An event costs the time from the kill to the first step that had not been
committed before it, less an ordinary step (the median of the same run): noticing the death, starting again,
loading, and what is trained a second time, but not start-up or how fast a system trains.

    .venv/bin/python benchmarks/recovery.py [--workers 6] [--steps 150] [--kills 5] [--torchft-python PYTHON]

torchrun saves every 10 steps and looks for deaths every 0.1 s. torchft needs an environment of its own (`pip
install torch==2.13.0 torchft numpy`): give that Python. Its lighthouse is told to take a silent replica for
dead after 1 s (default 5), and whoever is killed is started again at once, as by a scheduler without a queue.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from cloud.local.provider import LocalProvider
from parcae_cli.catalogue import load_measured_costs, load_template, templates_folder
from runtime.control.job.job import LaunchRequest
from runtime.control.job.launch import run

MODEL = "gpt-tiny"
PEER = Path(__file__).with_name("recovery_peer.py")
DEADLINE_S = 200.0
# Commits of one step by different workers lie closer together than this.
_SAME_S = 1.0
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "RES_OPTIONS": "timeout:1 attempts:1",
    "GLOO_SOCKET_IFNAME": "lo",
    # Torch 2.13 hands restarted workers the store of the first attempt, where gloo then finds the addresses
    # of the dead ("connectFullMesh failed: connection refused"); with this each attempt has its own.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


class PeerError(Exception):
    """A peer did not reach the last step; the message is its last words, `history` how far it came."""

    def __init__(self, why: str, history: History) -> None:
        super().__init__(why)
        self.history = history


@dataclass
class History:
    """What was committed when, and when workers were killed; times on one clock, in seconds."""

    commits: list[tuple[float, int]]  # when, step
    kills: list[float]

    def lost_s(self) -> list[float]:
        """What each kill cost that was got over."""
        ordinary_s = self.ordinary_s()
        lost = []
        for kill_s in self.kills:
            before = max((step for time_s, step in self.commits if time_s <= kill_s), default=-1)
            beyond = [time_s for time_s, step in self.commits if time_s > kill_s and step > before]
            if beyond:
                lost.append(max(0.0, min(beyond) - kill_s - ordinary_s))
        return lost

    def ordinary_s(self) -> float:
        """The median time between commits."""
        return statistics.median(later - earlier for (earlier, _), (later, _) in pairwise(self.commits))


def main() -> None:
    """Run each with the same kills, and print what a kill costs and its ratio to ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--torchft-python", type=Path)
    options = parser.parse_args()
    workers, steps, python = options.workers, options.steps, options.torchft_python
    gap = steps // (options.kills + 1)
    kills = [gap * (k + 1) + 3 for k in range(options.kills)]
    systems: dict[str, Callable[[], History]] = {
        "parcae": lambda: parcae(workers, steps, kills),
        "torchrun": lambda: torchrun(workers, steps, kills),
    }
    if python is not None:
        systems["torchft"] = lambda: torchft(python, workers, steps, kills)
    print(f"{MODEL}, {workers} workers, {steps} steps, {len(kills)} kills without notice")
    print(f"{'':10}{'step':>9}{'lost a kill: median':>22}{'mean':>9}{'longest':>10}{'median to ours':>17}")
    ours = 0.0
    for name, system in systems.items():
        try:
            history = system()
        except PeerError as error:
            print(f"{name:10} was stopped: {error}")
            history = error.history
        if not history.kills or not (lost := history.lost_s()):
            continue
        median = statistics.median(lost)
        ours = ours or median
        print(
            f"{name:10}{history.ordinary_s() * 1e3:6.0f} ms{median:20.3f} s{statistics.mean(lost):7.2f} s"
            f"{max(lost):8.2f} s{median / ours:16.0f}x",
            flush=True,
        )
    if python is None:
        print("torchft    left out: give --torchft-python")


def parcae(workers: int, steps: int, kills: list[int]) -> History:
    """A job on the local cloud."""
    chance = random.Random(1)
    history = History([], [])
    left = list(kills)

    def watch(step: int, provider: LocalProvider) -> None:
        history.commits.append((time.time(), step - 1))
        if left and step >= left[0]:
            left.pop(0)
            node = provider.node(chance.choice(sorted(provider.names())))
            pids = [record.pid for record in node.register.records() if record.role == "worker"]
            os.kill(pids[-1], signal.SIGKILL)
            history.kills.append(time.time())

    with tempfile.TemporaryDirectory() as folder:
        request = LaunchRequest(
            name="bench",
            model=MODEL,
            home=Path(folder),
            nodes=workers,
            steps=steps,
            template=load_template(MODEL),
            cost_table=load_measured_costs(),
        )
        run(request, watch)
    return history


class PeerRun:
    """A peer's processes and what they have written; kills whom it is told to."""

    def __init__(self, folder: Path, stack: ExitStack, workers: int) -> None:
        self.folder, self._stack, self._workers = folder, stack, workers
        self._chance = random.Random(1)

    def arguments(self, under: str, steps: int) -> list[str]:
        """The peer's command line behind its Python."""
        model = templates_folder() / "models" / f"{MODEL}.toml"
        command = [str(PEER), f"--under={under}", f"--model={model}", f"--steps={steps}"]
        return [*command, f"--folder={self.folder}"]

    def start(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        """Start a process that ends with this run at the latest."""
        with (self.folder / log).open("ab") as file:
            process = subprocess.Popen(
                command, env={**os.environ, **self.environment()}, stdout=file, stderr=file
            )
        self._stack.callback(process.wait, 30)
        self._stack.callback(process.terminate)
        return process

    def environment(self) -> dict[str, str]:
        """What gloo needs to stay on this machine."""
        return dict(_ENVIRONMENT)

    def commits(self) -> list[tuple[float, int]]:
        """Every commit of the worker that has most, and what others had before it."""
        found: set[tuple[float, int]] = set()
        for path in self.folder.glob("steps.*.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            found |= {(row["time_s"], row["step"]) for row in rows}
        # Replicas commit a step together: the first of them counts, and again where it is done again.
        chosen: list[tuple[float, int]] = []
        for time_s, step in sorted(found):
            if all(step != other or time_s - when > _SAME_S for when, other in chosen[-self._workers * 2 :]):
                chosen.append((time_s, step))
        return chosen

    def drive(self, steps: int, kills: list[int], alive: Callable[[], bool], log: str) -> History:
        """Kill after the given steps until all are done.

        Raises:
            PeerError: it ended early, or did not end.
        """
        left, end_s, killed = list(kills), time.monotonic() + DEADLINE_S, []
        while True:
            commits = self.commits()
            highest = max((step for _, step in commits), default=-1)
            if highest + 1 >= steps:
                return History(commits, killed)
            if time.monotonic() > end_s or not alive():
                said = (self.folder / log).read_text().strip().splitlines()[-1:]
                why = "not done in time" if alive() else "ended early"
                raise PeerError(f"{why} at step {highest}: {' '.join(said)[:200]}", History(commits, killed))
            if left and highest + 1 >= left[0]:
                left.pop(0)
                pid = int((self.folder / f"pid.{self._chance.randrange(self._workers)}").read_text())
                os.kill(pid, signal.SIGKILL)
                killed.append(time.time())
            time.sleep(0.02)


def torchrun(workers: int, steps: int, kills: list[int]) -> History:
    """Under torchrun's elastic launch."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        peer = PeerRun(Path(folder), stack, workers)
        command = [
            str(Path(sys.executable).parent / "torchrun"), "--nnodes=1", f"--nproc-per-node={workers}",
            f"--max-restarts={len(kills) + 1}", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
            "--local-addr=127.0.0.1", "--monitor-interval=0.1",
        ]  # fmt: skip
        agent = peer.start([*command, *peer.arguments("torchrun", steps)], "log")
        return peer.drive(steps, kills, lambda: agent.poll() is None, "log")


def torchft(python: Path, workers: int, steps: int, kills: list[int]) -> History:
    """Under torchft; the dead are started again at once."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        peer = PeerRun(Path(folder), stack, workers)
        port = 29600 + os.getpid() % 300
        lighthouse = str(python.parent / "torchft_lighthouse")
        options = ["--heartbeat_timeout_ms=1000", "--join_timeout_ms=1000", "--min_replicas=1"]
        peer.start([lighthouse, f"--bind=127.0.0.1:{port}", *options], "lighthouse")
        os.environ["TORCHFT_LIGHTHOUSE"] = f"http://127.0.0.1:{port}"

        def start(rank: int) -> subprocess.Popen[bytes]:
            return peer.start([str(python), *peer.arguments("torchft", steps), f"--rank={rank}"], "log")

        replicas = [start(rank) for rank in range(workers)]
        restarts = 0

        def alive() -> bool:
            nonlocal restarts
            for rank, process in enumerate(replicas):
                if process.poll() not in (None, 0):
                    restarts += 1
                    replicas[rank] = start(rank)
            return restarts <= 5 * (len(kills) + 1)

        return peer.drive(steps, kills, alive, "log")


if __name__ == "__main__":
    main()
