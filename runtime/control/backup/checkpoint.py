"""Durable checkpoints: written from the anchor's backup, so that no worker waits for a disk.

A checkpoint is a folder `step-N` with `model.safetensors` (weights), `optimizer.safetensors` (both moments)
and `checkpoint.json` (the step, the seed, the model's template). Tensors are named `LAYER.PARAMETER`, as in
`5.qkv.weight`; safetensors.torch.load_file reads them. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.planning.errors import InputError

FORMAT = 1
ABOUT, FILES = "checkpoint.json", ("model.safetensors", "optimizer.safetensors")
_MODEL, _OPTIMISER = FILES
_MOMENTS = ("first", "second")


@dataclass(frozen=True)
class Parameter:
    """One tensor of a layer; its place in the layer's flat state follows from the order and the shapes."""

    layer: int
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: each layer's [3, N] fp32 state as bytes, before `step`."""

    step: int
    seed: int
    template: Mapping[str, Any]
    layers: Mapping[int, bytes | bytearray]


def write(folder: Path, content: Checkpoint, parameters: Sequence[Parameter]) -> Path:
    """Write `folder`/step-N and return it. An existing one of that step is kept: it holds the same.

    Raises:
        OSError: the folder cannot be written.
    """
    from safetensors.numpy import save_file

    target = folder / f"step-{content.step}"
    if target.exists():
        return target
    scratch = folder / f".step-{content.step}.{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    rows = {
        layer: np.frombuffer(blob, dtype=np.float32).reshape(3, -1) for layer, blob in content.layers.items()
    }
    save_file(_split(parameters, rows, 0, ""), scratch / _MODEL)
    moments: dict[str, Any] = {}
    for row, moment in enumerate(_MOMENTS, start=1):
        moments |= _split(parameters, rows, row, f".{moment}")
    save_file(moments, scratch / _OPTIMISER)
    about = {
        "format": FORMAT,
        "step": content.step,
        "seed": content.seed,
        "template": dict(content.template),
        "parameters": [[p.layer, p.name, list(p.shape)] for p in parameters],
        "bytes": {name: (scratch / name).stat().st_size for name in FILES},
    }
    (scratch / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    for path in [*scratch.iterdir(), scratch]:
        _sync(path)
    scratch.rename(target)
    _sync(folder)
    return target


def read(folder: Path, named: str = "") -> Checkpoint:
    """Read a checkpoint, or the newest one in a folder of checkpoints. `named` is how errors call it.

    Raises:
        InputError: there is none, or it is not whole; the message names the folder.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder if (folder / ABOUT).exists() else newest(folder)
    try:
        about = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        for name, size_bytes in about.get("bytes", {}).items():
            if (path / name).stat().st_size != size_bytes:
                raise ValueError(f"{name} is not of {size_bytes:,} bytes")
        weights, moments = load_file(path / _MODEL), load_file(path / _OPTIMISER)
        rows: dict[int, tuple[list[Any], list[Any], list[Any]]] = {}
        for layer, name, _ in about["parameters"]:
            full = f"{layer}.{name}"
            parts = weights[full], *(moments[f"{full}.{moment}"] for moment in _MOMENTS)
            for row, part in zip(rows.setdefault(layer, ([], [], [])), parts, strict=True):
                row.append(part)
        blobs = {
            layer: b"".join(np.ascontiguousarray(part).tobytes() for row in three for part in row)
            for layer, three in rows.items()
        }
        return Checkpoint(int(about["step"]), int(about["seed"]), about["template"], blobs)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{named or path}: is not a whole checkpoint: {why}") from error


def newest(folder: Path) -> Path:
    """The checkpoint of the highest step in a folder.

    Raises:
        InputError: there is none.
    """
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    if not found:
        raise InputError(
            f"{folder}: no checkpoint here; give a folder step-N, or one that holds such folders"
        )
    return max(found, key=lambda path: int(path.name[5:]))


def _split(parameters: Sequence[Parameter], rows: Mapping[int, Any], row: int, suffix: str) -> dict[str, Any]:
    """The tensors of one row of every layer's state, by name."""
    tensors: dict[str, Any] = {}
    start: dict[int, int] = {}
    for parameter in parameters:
        begin = start.get(parameter.layer, 0)
        end = begin + math.prod(parameter.shape)
        start[parameter.layer] = end
        flat = rows[parameter.layer][row, begin:end]
        tensors[f"{parameter.layer}.{parameter.name}{suffix}"] = flat.reshape(parameter.shape)
    return tensors


def _sync(path: Path) -> None:
    """Have the disk remember a file or a folder's entries."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
