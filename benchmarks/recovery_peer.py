"""The peers of `recovery.py`: the same model in plain PyTorch, as people train it under torchrun or torchft.

Data-parallel over gloo, one process a worker, no package of ours. Under torchrun rank 0 saves model and
optimiser every `--save-every` steps; after a death torchrun starts every process again and they load the last
checkpoint. Under torchft every worker is a replica group of its own; survivors drop the step in flight and go
on, and a worker that is started again gets the state from one of them. A committed step is a line in
steps.RANK.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sysconfig
import time
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as functional
from torch import nn


class Block(nn.Module):
    """Causal self-attention and a 4x MLP, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, seq, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, seq, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.project(out.transpose(1, 2).reshape(batch, seq, width))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """A GPT of a template's [gpt] table; returns the mean loss."""

    def __init__(self, shape: dict[str, int]) -> None:
        super().__init__()
        width = shape["d_model"]
        self.token = nn.Embedding(shape["vocab"], width)
        self.position = nn.Parameter(torch.zeros(shape["seq"], width))
        self.blocks = nn.Sequential(*(Block(width, shape["heads"]) for _ in range(shape["layers"])))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, shape["vocab"], bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        out = self.head(self.norm(self.blocks(self.token(tokens[:, :-1]) + self.position)))
        return functional.cross_entropy(out.flatten(0, 1), tokens[:, 1:].flatten())


class Job:
    """What both kinds of training share. `rank` is the worker's number."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        template = tomllib.loads(options.model.read_text())
        self.training, self.seq = template["training"], int(template["gpt"]["seq"])
        torch.manual_seed(0)
        self.model = Gpt(template["gpt"])
        library = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
        text = bytearray(b"".join(path.read_bytes() for path in library[:60]))
        self.text = torch.frombuffer(text, dtype=torch.uint8).long()
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            self.training["learning_rate"],
            (self.training["beta1"], self.training["beta2"]),
            self.training["epsilon"],
            self.training["weight_decay"],
        )
        self.log = (options.folder / f"steps.{rank}.jsonl").open("a")
        (options.folder / f"pid.{rank}").write_text(str(os.getpid()))

    def gradients(self, ddp: Any, step: int, rank: int, size: int) -> None:
        """Forward and backward of this worker's micro-batches; the last backward reduces."""
        count = self.training["mini_batch"] // self.training["micro_batch"]
        mine = range(rank, count, size)
        for k in mine:
            order = torch.Generator().manual_seed(step * count + k)
            starts = torch.randint(
                0, len(self.text) - self.seq - 1, (self.training["micro_batch"],), generator=order
            )
            tokens = torch.stack([self.text[s : s + self.seq + 1] for s in starts.tolist()])
            with ddp.no_sync() if k != mine[-1] else contextlib.nullcontext():
                (ddp(tokens) / len(mine)).backward()

    def committed(self, step: int) -> None:
        """Step `step` is done."""
        self.log.write(json.dumps({"step": step, "time_s": time.time()}) + "\n")
        self.log.flush()


def torchrun(options: argparse.Namespace) -> None:
    """Under torchrun: train to the last step, from the checkpoint if there is one."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    job = Job(options, rank)
    saved, first = options.folder / "checkpoint.pt", 0
    if saved.exists():
        found = torch.load(saved)
        first = found["step"]
        job.model.load_state_dict(found["model"])
        job.optimiser.load_state_dict(found["optimiser"])
    ddp = nn.parallel.DistributedDataParallel(job.model)
    for step in range(first, options.steps):
        job.optimiser.zero_grad()
        job.gradients(ddp, step, rank, size)
        job.optimiser.step()
        job.committed(step)
        if rank == 0 and (step + 1) % options.save_every == 0:
            scratch = saved.with_suffix(".tmp")
            state = {"model": job.model.state_dict(), "optimiser": job.optimiser.state_dict()}
            torch.save({"step": step + 1, **state}, scratch)
            scratch.rename(saved)
    dist.destroy_process_group()


def torchft(options: argparse.Namespace) -> None:
    """A replica group of one worker, number `--rank` of `--size`."""
    from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

    job = Job(options, options.rank)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def load(state: dict[str, Any]) -> None:
        job.model.load_state_dict(state["model"])
        job.optimiser.load_state_dict(state["optimiser"])

    manager = Manager(
        pg=ProcessGroupGloo(timeout=timedelta(seconds=5)),
        load_state_dict=load,
        state_dict=lambda: {"model": job.model.state_dict(), "optimiser": job.optimiser.state_dict()},
        min_replica_size=1,
        timeout=timedelta(seconds=10),
        rank=0,
        world_size=1,
        store_addr="127.0.0.1",
        store_port=store.port,
        replica_id=f"replica{options.rank}_",
        hostname="127.0.0.1",
    )
    ddp = DistributedDataParallel(manager, job.model)
    optimiser = Optimizer(manager, job.optimiser)
    while (step := manager.current_step()) < options.steps:
        optimiser.zero_grad()
        job.gradients(ddp, step, manager.participating_rank() or 0, max(1, manager.num_participants()))
        optimiser.step()
        if manager.current_step() > step:
            job.committed(step)
    manager.shutdown(wait=False)
    os._exit(0)


def main() -> None:
    """Parse and train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--under", choices=("torchrun", "torchft"), required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    (torchrun if options.under == "torchrun" else torchft)(options)


if __name__ == "__main__":
    main()
