"""What planning needs to know of a model on this machine's device: measured by running it."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from runtime.engine.generation import compute_device
from runtime.engine.gradients import bind_gradients
from runtime.engine.groups import gloo_group
from runtime.engine.models import gpt
from runtime.engine.numerics import Numerics, dropout_seed, optimiser_of
from runtime.engine.state import LayerState
from runtime.planning.errors import InputError
from runtime.planning.estimate import STATE_BYTES, UPDATE_BYTES, USABLE_MEMORY
from runtime.planning.measured import FORM
from runtime.planning.model import ModelSpec

WARM_UPS = 2
_LINK_VALUES = 2 << 20  # in float64: 16 MiB
_TIMEOUT = timedelta(seconds=60)


def measure(spec: ModelSpec, named: str, sizes: Sequence[int], repeats: int, threads: int) -> dict[str, Any]:
    """The profile of a model as JSON values, for micro-batches of these `sizes` (in samples).

    `named` is what the user calls the model. Every time is a median of `repeats`, in seconds.

    Raises:
        InputError: the model, or its largest micro-batch, does not fit this device's memory.
    """
    device = compute_device()
    torch.set_num_threads(threads)
    exact = device.type == "cpu"
    gradient_bytes = 8 if exact else 4
    check_fits(spec, max(sizes), gradient_bytes, device)
    bench = _Bench(spec, device, exact, repeats)
    batches = [bench.micro_batch(size) for size in sizes]
    optimiser_s = bench.optimiser_s()
    link_bytes_per_s, message_s, link = spec.device.link_bytes_per_s, 0.0, "the template's"
    if exact:
        link_bytes_per_s, message_s = measure_loopback(repeats)
        link = "measured between two workers over loopback"
    busy_s = sum(row["forward_s"] + row["backward_s"] for row in batches[0]["layers"])
    flops = 3 * sizes[0] * sum(layer.forward_flops_per_sample for layer in spec.layers)
    return {
        "parcae_profile": FORM,
        "model": named,
        "machine": {
            "name": platform.node(),
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "threads": threads,
            "torch": torch.__version__,
        },
        "device": {
            "name": device_name(device),
            "memory_bytes": memory_bytes(device)[0],
            "flops_per_s": flops / busy_s,
            "link_bytes_per_s": link_bytes_per_s,
            "message_s": message_s,
            "link": link,
        },
        "dtype": spec.training.dtype,
        "recompute": spec.training.recompute,
        "repeats": repeats,
        "state_bytes_per_param": STATE_BYTES,
        "gradient_bytes_per_param": gradient_bytes,
        "layers": [
            {"name": layer.name, "params": layer.params, "state_bytes": layer.params * STATE_BYTES,
             "optimiser_s": seconds}
            for layer, seconds in zip(spec.layers, optimiser_s, strict=True)
        ],
        "micro_batches": batches,
    }  # fmt: skip


def check_fits(spec: ModelSpec, size: int, gradient_bytes: int, device: torch.device) -> None:
    """Refuse a model that this device has no room for, before any memory is taken.

    Raises:
        InputError: it does not fit; the message has the arithmetic.
    """
    per_param = STATE_BYTES + gradient_bytes + UPDATE_BYTES
    stored = spec.state_params * per_param
    kept = size * sum(layer.activation_bytes_per_sample for layer in spec.layers)
    usable = memory_bytes(device)[1] * USABLE_MEMORY
    if stored + kept > usable:
        raise InputError(
            f"{spec.name}: {spec.state_params:,} parameters x {per_param} bytes = {stored / 1e9:.3g} GB and "
            f"{kept / 1e9:.3g} GB for activations of a micro-batch of {size}; {device_name(device)} has "
            f"{usable / 1e9:.3g} GB free; measure it on a device with more memory"
        )


def device_name(device: torch.device) -> str:
    """What the device is called by its maker."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def memory_bytes(device: torch.device) -> tuple[int, int]:
    """The device's memory, and what of it is free."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(rows[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    group = Path("/sys/fs/cgroup")
    limit, used = (_number(group / name) for name in ("memory.max", "memory.current"))
    if limit is not None:
        total, free = min(total, limit), min(free, limit - (used or 0))
    return total, free


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdigit() else None


class _Bench:
    """All layers of a model in memory, as one worker would hold them."""

    def __init__(self, spec: ModelSpec, device: torch.device, exact: bool, repeats: int) -> None:
        assert spec.gpt is not None
        self._spec, self._shape, self._device, self._repeats = spec, spec.gpt, device, repeats
        self._numerics = Numerics.of(spec.training, device)
        self._layers = []
        for index in range(len(spec.layers)):
            tied = gpt.tied_parameter(self._shape, index)
            layer = LayerState(index, gpt.build_layer(self._shape, index), exact, device, tied)
            gpt.initialise_layer(layer.module, self._shape, index, 0)
            self._layers.append(layer)
        bind_gradients(self._layers, exact)

    def _clock(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def micro_batch(self, size: int) -> dict[str, Any]:
        """Times and sizes of each layer for micro-batches of so many samples."""
        tokens = torch.randint(0, self._shape.vocab, (size, self._shape.seq + 1), device=self._device)
        kept, crossing = self._sizes(tokens)
        runs = [self._timed(tokens) for _ in range(WARM_UPS + self._repeats)][WARM_UPS:]
        rows = [
            {
                "forward_s": median(run[0][index] for run in runs),
                "backward_s": median(run[1][index] for run in runs),
                "activation_bytes": kept[index],
                "output_bytes": crossing[index],
            }
            for index in range(len(self._layers))
        ]
        return {"size": size, "layers": rows}

    def _forward(self, layer: LayerState, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        out = self._numerics.forward(layer.module, x, dropout_seed(0, 0, 0, layer.index))
        return gpt.loss_of(out, targets) if layer is self._layers[-1] else out

    def _timed(self, tokens: torch.Tensor) -> tuple[list[float], list[float]]:
        """Seconds of each layer's forward and backward; layers are cut off from each other, as stages are."""
        x, targets = tokens[:, :-1], tokens[:, 1:]
        ends: list[tuple[torch.Tensor, torch.Tensor]] = []
        forward_s: list[float] = []
        for layer in self._layers:
            if ends:
                x = x.detach().requires_grad_()
            began = self._clock()
            out = self._forward(layer, x, targets)
            forward_s.append(self._clock() - began)
            ends.append((x, out))
            x = out
        backward_s: list[float] = []
        gradient: torch.Tensor | None = None
        for received, out in reversed(ends):
            began = self._clock()
            torch.autograd.backward(out, gradient)
            backward_s.append(self._clock() - began)
            gradient = received.grad
        return forward_s, backward_s[::-1]

    def _sizes(self, tokens: torch.Tensor) -> tuple[list[int], list[int]]:
        """Bytes that each layer keeps for its backward pass (none recomputed), and bytes that it puts out."""
        x, targets = tokens[:, :-1], tokens[:, 1:]
        kept, crossing = [], []
        numerics = Numerics(self._device, self._numerics.bf16, False, self._numerics.dropout)
        for layer in self._layers:
            found: dict[int, int] = {}
            own = {layer.buffer.untyped_storage().data_ptr()}
            received = x if layer.index == 0 else x.detach().requires_grad_()

            def pack(
                tensor: torch.Tensor, found: dict[int, int] = found, own: set[int] = own
            ) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    found[storage.data_ptr()] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                out = numerics.forward(layer.module, received, dropout_seed(0, 0, 0, layer.index))
                if layer is self._layers[-1]:
                    out = gpt.loss_of(out, targets)
            kept.append(sum(found.values()))
            crossing.append(out.numel() * out.element_size())
            x = out.detach()
        return kept, crossing

    def optimiser_s(self) -> list[float]:
        """Seconds a step that each layer takes outside its micro-batches: norm, scaling, update, zeroing."""
        constants = optimiser_of(self._spec.training)
        times: list[list[float]] = [[] for _ in self._layers]
        for step in range(WARM_UPS + self._repeats):
            for layer, seen in zip(self._layers, times, strict=True):
                began = self._clock()
                layer.gradient.zero_()
                layer.square_norm()
                layer.update(step, layer.scaled(1.0), constants)
                seen.append(self._clock() - began)
        return [median(seen[WARM_UPS:]) for seen in times]


def measure_loopback(repeats: int) -> tuple[float, float]:
    """Bytes a second of an all-reduce between two workers on this machine, and seconds a small message takes.

    Two threads stand for the workers. Of D replicas a ring moves 2 (D - 1) / D times the bytes: once for two.
    """
    store = dist.HashStore()  # type: ignore[attr-defined]
    times: list[tuple[float, float]] = []
    failures: list[BaseException] = []

    def member(rank: int) -> None:
        try:
            group = gloo_group(store, rank, 2, "127.0.0.1", _TIMEOUT)
            large, small = torch.zeros(_LINK_VALUES, dtype=torch.float64), torch.zeros(16)
            for _ in range(WARM_UPS + repeats):
                reduce_s = _seconds(lambda: group.allreduce([large]).wait(_TIMEOUT))
                times_there = _seconds(lambda: _there_and_back(group, small, rank))
                if rank == 0:
                    times.append((reduce_s, times_there / 2))
        except BaseException as error:  # noqa: BLE001  # told to the caller below
            failures.append(error)

    threads = [threading.Thread(target=member, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * _TIMEOUT.total_seconds())
    if failures or len(times) < WARM_UPS + repeats:
        raise RuntimeError(f"loopback could not be measured: {failures or 'no answer'}")
    reduce_s, message_s = (median(column) for column in zip(*times[WARM_UPS:], strict=True))
    return 8 * _LINK_VALUES / reduce_s, message_s


def _there_and_back(group: Any, tensor: torch.Tensor, rank: int) -> None:
    for turn in (0, 1):
        if rank == turn:
            group.send([tensor], 1 - rank, turn).wait(_TIMEOUT)
        else:
            group.recv([tensor], 1 - rank, turn).wait(_TIMEOUT)


def _seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began
