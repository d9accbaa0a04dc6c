"""What Parcae needs of NCCL, tried on this machine's GPUs: a line each, PASS, FAIL or SKIP and why.

Each check runs in processes of its own, one a GPU, and is ended after two minutes. Without a CUDA device
there is nothing to try: it says so and exits with 2. A failed check: 1. None failed: 0.

Run: python benchmarks/nccl_check.py [--only NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from runtime.control.node.worker_process import WorkerPlan, worker_environment
from runtime.engine.ahead import AheadCopy
from runtime.engine.generation import compute_device
from runtime.engine.groups import StoreServer, store_client
from runtime.engine.nccl_groups import NcclGroups
from runtime.engine.state import AdamW, LayerState
from runtime.engine.transfer import StateServer
from runtime.engine.waits import AbandonedError, Waiter

WITHIN_S = 120.0
HOST = "127.0.0.1"
TOLERANCE = 1e-3  # of a loss, between layouts on GPUs: an expectation, to be replaced by what is measured
SIZE = 1 << 22


def groups(generation: int, store: int, pipelines: int, stages: int, rank: int) -> NcclGroups:
    """This process's groups; its rank is its position's number."""
    device = torch.device("cuda", 0)
    return NcclGroups(generation, device, (HOST, store), pipelines, stages, divmod(rank, stages))


def ended(work: Any, what: str) -> None:
    """The device has done it, or the check fails."""
    if not work.done_within(30.0):
        raise RuntimeError(f"{what}: not done within 30 s")


def build(rank: int, store: int) -> str:
    """Two replicas and two stages, one after the other."""
    began_s = time.monotonic()
    groups(1, store, 2, 1, rank)
    middle_s = time.monotonic()
    groups(2, store, 1, 2, rank)
    return f"{middle_s - began_s:.2f} s for replicas, {time.monotonic() - middle_s:.2f} s for a pipeline"


def all_reduce(rank: int, store: int) -> str:
    """Sums over replicas in fp32 (fast mode) and float64 (exact mode)."""
    joined, rates = groups(1, store, 2, 1, rank), []
    for kind in (torch.float32, torch.float64):
        tensor = torch.full((SIZE,), float(rank + 1), dtype=kind, device="cuda")
        began_s = time.monotonic()
        ended(joined.reduce(tensor), str(kind))
        rates.append(f"{kind}: {tensor.nbytes / (time.monotonic() - began_s) / 1e9:.1f} GB/s")
        if not bool((tensor == 3.0).all()):
            raise RuntimeError(f"{kind}: the sum of 1 and 2 is {tensor[0]}")
    return ", ".join(rates)


def point_to_point(rank: int, store: int) -> str:
    """1F1B's traffic: activations down and gradients up at the same time, none of them batched."""
    joined, kept = groups(1, store, 1, 2, rank), []
    for number in range(32):
        out = torch.full((SIZE // 8,), float(number), device="cuda")
        back = torch.empty_like(out)
        if rank == 0:
            kept.append((joined.send_activation(out, number), out))
            ended(joined.receive_gradient(back, number), "a gradient")
        else:
            ended(joined.receive_activation(back, number), "an activation")
            kept.append((joined.send_gradient(back, number), back))
        if float(back[-1]) != number:
            raise RuntimeError(f"message {number} came as {float(back[-1])}")
    for work, _ in kept:
        ended(work, "a send")
    return "32 of each"


def abort(rank: int, store: int) -> str:
    """A peer is killed in the middle of a step: the other leaves its wait, and lives."""
    joined, waiter = groups(1, store, 2, 1, rank), Waiter("generation")
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    work = joined.reduce(torch.ones(SIZE, device="cuda"))
    assert work is not None
    waiter.post(work.wait)
    time.sleep(1.0)
    began_s = time.monotonic()
    waiter.abandon()
    joined.abort()
    with contextlib.suppress(AbandonedError):
        waiter.collect()
    left_s = time.monotonic() - began_s
    while not waiter.finished:
        time.sleep(0.01)
    if float(torch.ones(8, device="cuda").sum()) != 8.0:
        raise RuntimeError("the device does not compute any more")
    return f"left after {left_s * 1e3:.0f} ms, the thread ended after {time.monotonic() - began_s:.1f} s"


def rebuild(rank: int, store: int) -> str:
    """The next generation beside the one in use, at other positions; both work, then only the new one."""
    old = groups(1, store, 2, 1, rank)
    new = groups(2, store, 2, 1, 1 - rank)
    for joined in (old, new):
        tensor = torch.full((SIZE,), float(rank + 1), device="cuda")
        ended(joined.reduce(tensor), "a sum")
        if float(tensor[0]) != 3.0:
            raise RuntimeError(f"the sum of 1 and 2 is {float(tensor[0])}")
    # Both must have used the old one before it goes.
    client = store_client((HOST, store))
    client.add("used", 1)
    while client.add("used", 0) < 2:
        time.sleep(0.01)
    old.abort()
    tensor = torch.full((SIZE,), float(rank + 1), device="cuda")
    ended(new.reduce(tensor), "a sum after the old groups went")
    return "the old groups were aborted, the new ones summed on"


def copy_ahead(rank: int, store: int) -> str:
    """A layer on the GPU is copied over TCP, and follows its source by one step."""
    device, optimiser = compute_device(), AdamW(1e-3, 0.01, 0.9, 0.95, 1e-8)

    def layer() -> LayerState:
        return LayerState(0, torch.nn.Linear(2048, 2048, device="meta"), False, device)

    source, server = layer(), StateServer(HOST, lambda point: None)
    source.buffer.copy_(torch.rand_like(source.buffer))
    server.publish(5, {0: source.outgoing})

    def replay(copy: LayerState, step: int, gradient: torch.Tensor) -> None:
        copy.update(step, gradient.to(device), optimiser)

    wanted, told = {0: server.address}, []
    copy = AheadCopy(
        2, wanted, server.token, lambda index: layer(), replay, lambda p: None, lambda *t: told.append(t)
    )
    while not told:
        time.sleep(0.001)
    gradient = torch.rand(source.size, device=device)
    server.withdraw()
    server.keep(0, 5, gradient)
    source.update(5, gradient, optimiser)
    server.publish(6, {0: source.outgoing})
    taken = copy.take(6)
    if 0 not in taken or not torch.equal(taken[0].buffer, source.buffer):
        raise RuntimeError("the copy is not the same bits as its source")
    moved, seconds = told[0]
    return f"{moved / 1e6:.0f} MB in {seconds:.2f} s, the same bits after a step"


def whole_job(rank: int, store: int) -> str:
    """gpt-tiny on one GPU and, where there are more, on two stages: the same losses, within the tolerance."""
    from parcae_cli.catalogue import load_measured_costs, load_template
    from runtime.control.job.job import LaunchRequest
    from runtime.control.job.launch import run

    template = load_template("gpt-tiny")
    losses = []
    for gpus in range(1, min(2, int(os.environ["CHECK_GPUS"])) + 1):
        memory_bytes = (16 << 30) if gpus == 1 else template["device"]["memory_bytes"]
        sized = {**template, "device": {**template["device"], "memory_bytes": memory_bytes}}
        with tempfile.TemporaryDirectory() as home:
            request = LaunchRequest(
                "check", "gpt-tiny", Path(home), nodes=1, gpus_per_node=gpus, steps=20, seed=1,
                template=sized, cost_table=load_measured_costs(),
            )  # fmt: skip
            result = run(request)
        if result.state != "done" or result.final_loss is None:
            raise RuntimeError(f"on {gpus} GPUs it ended as {result.state}: {result.why}")
        losses.append(result.final_loss)
    if abs(losses[0] - losses[-1]) > TOLERANCE * losses[0]:
        raise RuntimeError(f"losses {losses} differ by more than {TOLERANCE:g}")
    return f"losses {losses} after 20 steps"


# name -> (what runs, on how many GPUs, how many it needs)
CHECKS: dict[str, tuple[Callable[[int, int], str], int, int]] = {
    "build": (build, 2, 2),
    "all-reduce": (all_reduce, 2, 2),
    "point-to-point": (point_to_point, 2, 2),
    "abort": (abort, 2, 2),
    "rebuild": (rebuild, 2, 2),
    "copy-ahead": (copy_ahead, 1, 1),
    "job": (whole_job, 1, 1),
}


def carry_out(name: str, count: int) -> str:
    """The line of one check, of `count` GPUs."""
    _, ranks, needed = CHECKS[name]
    if count < needed:
        return f"SKIP {name}: needs {needed} GPUs, {count} here"
    store, processes = StoreServer(HOST), []
    plan = WorkerPlan(Path(), Path(), Path(), "", None)
    for rank in range(ranks):
        environment = {**worker_environment(os.environ, plan), "CHECK_GPUS": str(count)}
        environment.pop("PARCAE_REGISTER")
        if ranks > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(rank)
        command = [sys.executable, __file__, "--only", name, "--rank", f"{rank}", "--store", f"{store.port}"]
        pipe: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipe))
    said, failed = [], ""
    deadline_s = time.monotonic() + WITHIN_S
    for rank, process in enumerate(processes):
        try:
            out, _ = process.communicate(timeout=max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            failed = failed or f"rank {rank} did not end within {WITHIN_S:g} s"
        lines = out.strip().splitlines() or [""]
        dies = name == "abort" and rank == 1
        if process.returncode and not dies:
            failed = failed or f"rank {rank}: {lines[-1]}"
        said.append(lines[-1])
    return f"FAIL {name}: {failed}" if failed else f"PASS {name}: {said[0]}"


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=CHECKS, help="one check alone")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.rank is not None:
        print(CHECKS[chosen.only][0](chosen.rank, chosen.store), flush=True)
        os._exit(0)  # destructors of groups whose peers have gone may wait
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing of NCCL can be tried", file=sys.stderr)
        return 2
    lines = []
    for name in [chosen.only] if chosen.only else CHECKS:
        lines.append(carry_out(name, torch.cuda.device_count()))
        print(lines[-1], flush=True)
    return 1 if any(line.startswith("FAIL") for line in lines) else 0


if __name__ == "__main__":
    raise SystemExit(main())
