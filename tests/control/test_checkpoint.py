"""Checkpoints on disk: whole or not at all, readable elsewhere, refused when broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from runtime.control.backup import checkpoint
from runtime.control.backup.checkpoint import Checkpoint, Parameter
from runtime.planning.errors import InputError

PARAMETERS = [Parameter(0, "token", (3, 2)), Parameter(1, "z.weight", (2, 2)), Parameter(1, "a.bias", (2,))]
STATE = {
    0: np.arange(18, dtype=np.float32).tobytes(),
    1: (np.arange(18, dtype=np.float32) * 0.1).tobytes(),
}
TEMPLATE = {"name": "toy"}


def test_what_was_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    """Weights, moments, step, seed and template; the newest checkpoint of a folder is taken."""
    checkpoint.write(tmp_path, Checkpoint(9, 5, TEMPLATE, {0: STATE[1], 1: STATE[0]}), PARAMETERS)
    path = checkpoint.write(tmp_path, Checkpoint(10, 5, TEMPLATE, STATE), PARAMETERS)
    for folder in (tmp_path, path):
        found = checkpoint.read(folder)
        assert (found.step, found.seed, found.template) == (10, 5, TEMPLATE)
        assert found.layers == STATE


def test_plain_pytorch_reads_the_weights(tmp_path: Path) -> None:
    """safetensors' own loader gives tensors by name, in their shapes."""
    from safetensors.torch import load_file

    path = checkpoint.write(tmp_path, Checkpoint(10, 5, TEMPLATE, STATE), PARAMETERS)
    weights = load_file(path / "model.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        "0.token": (3, 2),
        "1.z.weight": (2, 2),
        "1.a.bias": (2,),
    }
    assert weights["0.token"].flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_an_unfinished_checkpoint_is_never_seen(tmp_path: Path) -> None:
    """A writer that died leaves a hidden folder, which is neither taken nor in the way."""
    (tmp_path / ".step-20.1").mkdir()
    checkpoint.write(tmp_path, Checkpoint(10, 5, TEMPLATE, STATE), PARAMETERS)
    assert checkpoint.newest(tmp_path).name == "step-10"


@pytest.mark.parametrize("broken", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_a_broken_checkpoint_is_refused_by_name(tmp_path: Path, broken: str) -> None:
    """A missing or cut-off file: an error that names the folder."""
    path = checkpoint.write(tmp_path, Checkpoint(10, 5, TEMPLATE, STATE), PARAMETERS)
    content = (path / broken).read_bytes()
    (path / broken).write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="step-10: is not a whole checkpoint"):
        checkpoint.read(path)


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    """The error says what to give."""
    with pytest.raises(InputError, match="no checkpoint here; give a folder step-N"):
        checkpoint.read(tmp_path)


def test_the_description_names_the_parameters(tmp_path: Path) -> None:
    """checkpoint.json alone tells what the tensors are."""
    path = checkpoint.write(tmp_path, Checkpoint(10, 5, TEMPLATE, STATE), PARAMETERS)
    about = json.loads((path / "checkpoint.json").read_text())
    assert about["parameters"] == [[0, "token", [3, 2]], [1, "z.weight", [2, 2]], [1, "a.bias", [2]]]
