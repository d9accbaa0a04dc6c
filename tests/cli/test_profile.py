"""`parcae profile` measures a model on this machine, and replays and launches plan by its file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from parcae_cli.catalogue import load_model
from parcae_cli.measured_profile import model_with_profile
from runtime.planning.profile import estimated_profile
from runtime.planning.types import Layout
from tests.cli.conftest import Done

Run = Callable[..., Done]
TRACE = Path(__file__).resolve().parents[2] / "templates" / "traces" / "demo-8.csv"


def made_up(size: int = 2, memory_bytes: float = 1e9) -> dict:
    """A profile of gpt-tiny in which every layer takes 3 ms a micro-batch and 1 ms a step."""
    spec = load_model("gpt-tiny")
    layers = [
        {"name": layer.name, "params": layer.params, "state_bytes": 12 * layer.params, "optimiser_s": 0.001}
        for layer in spec.layers
    ]
    row = {"forward_s": 0.001, "backward_s": 0.002, "activation_bytes": 1000, "output_bytes": 100}
    device = {"name": "made up", "memory_bytes": memory_bytes, "flops_per_s": 1e9, "link_bytes_per_s": 1e12,
              "message_s": 0.0}  # fmt: skip
    return {
        "parcae_profile": 1, "model": "gpt-tiny", "dtype": "fp32", "recompute": False, "device": device,
        "gradient_bytes_per_param": 8, "layers": layers,
        "micro_batches": [{"size": size, "layers": [row] * len(layers)}],
    }  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a made-up profile, with changes, and gives its path."""

    def write(name: str = "p.json", **changes: object) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({**made_up(), **changes}))
        return path

    return write


def test_a_profile_is_measured_and_replayed(parcae: Run, home: Path) -> None:
    """The file has positive times and true sizes with units in their names; a replay takes model and rows."""
    done = parcae("profile", "gpt-tiny", "--repeats", 1, "--micro-batch", 2, "--micro-batch", 1, "--json")
    assert done.code == 0
    found = json.loads(done.out)
    spec = load_model("gpt-tiny")
    assert found.pop("file") == "gpt-tiny.profile.json"
    assert found == json.loads(Path("gpt-tiny.profile.json").read_text())
    assert found["device"]["name"] and found["machine"]["name"]
    assert [layer["state_bytes"] for layer in found["layers"]] == [12 * layer.params for layer in spec.layers]
    assert [batch["size"] for batch in found["micro_batches"]] == [2, 1]
    twice, once = (batch["layers"] for batch in found["micro_batches"])
    assert all(row["forward_s"] > 0 and row["backward_s"] > 0 for row in [*once, *twice])
    assert twice[1]["activation_bytes"] == 2 * once[1]["activation_bytes"] > 0
    assert twice[0]["output_bytes"] == spec.layers[0].output_bytes_per_sample * 2
    replayed = json.loads(
        parcae("replay", TRACE, "--profile", "gpt-tiny.profile.json", "--policy", "ideal", "--json").out
    )
    assert (replayed["model"], replayed["costs"]) == ("gpt-tiny", "measured")
    again = parcae("profile", "gpt-tiny")
    assert again.code == 2 and "--force" in again.err


def test_steps_are_those_of_the_measured_layers(written: Callable[..., Path]) -> None:
    """8 layers of 3 ms for 18 micro-batches and 8 ms of updates are one worker's step; stages share it."""
    rows = estimated_profile(model_with_profile("gpt-tiny", written()), 2).iteration_s
    assert rows[Layout(1, 1)] == pytest.approx(18 * 0.024 + 0.008)
    assert rows[Layout(1, 2)] == pytest.approx(19 * 0.012 + 0.004, rel=1e-3)


def test_what_does_not_fit_the_measured_device_is_refused(written: Callable[..., Path]) -> None:
    """The arithmetic of memory is that of the device and of the sizes that were measured."""
    small = made_up(memory_bytes=4_000_000)["device"]
    profile = estimated_profile(model_with_profile("gpt-tiny", written(device=small)), 4)
    assert "made up has 0.00368 GB" in profile.refused[Layout(1, 1)]


def test_a_launch_plans_by_a_profile(parcae: Run, written: Callable[..., Path]) -> None:
    """On the measured device one node is enough for gpt-tiny, where its make-believe device needs two."""
    plain = parcae("launch", "gpt-tiny", "--nodes", 1, "--dry-run")
    assert plain.code == 2 and "give --nodes 2" in plain.err
    measured = parcae("launch", "gpt-tiny", "--nodes", 1, "--profile", written(), "--dry-run", "--json")
    assert measured.code == 0, measured.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parcae_profile": 7}, "parcae_profile: must be 1"),
        ({"layers": [{"name": "x", "params": 3, "optimiser_s": 1}]}, "layers: is of gpt-tiny, with 1 layers"),
        ({"micro_batches": made_up(5)["micro_batches"]}, "--micro-batch 2"),
        ({"dtype": "bf16"}, "dtype: was measured as 'bf16'"),
        ({"device": {"name": "x"}}, "is missing"),
        ({"micro_batches": [3]}, "list of tables"),
    ],
)
def test_a_wrong_profile_is_refused_by_file_and_key(
    changes: dict, said: str, parcae: Run, written: Callable[..., Path]
) -> None:
    """One line, exit code 2, from replay and launch alike."""
    for command in (("replay", TRACE), ("launch", "gpt-tiny", "--dry-run")):
        done = parcae(*command, "--profile", written(**changes))
        assert done.code == 2 and done.err.count("\n") == 1
        assert said in done.err and "p.json" in done.err


def test_profile_refuses_what_it_cannot_do(
    parcae: Run, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Models that cannot be run, folders, other clouds' devices, the artifact's costs, too little memory."""
    assert "can be replayed, not trained" in parcae("profile", "vgg19").err
    assert "is a folder" in parcae("profile", "gpt-tiny", "--out", tmp_path).err
    assert "there is no folder" in parcae("profile", "gpt-tiny", "--out", tmp_path / "no" / "p.json").err
    cloud = parcae("launch", "gpt-tiny", "--cloud", "aws", "--profile", written(), "--dry-run")
    assert cloud.code == 2 and "--profile" in cloud.err
    costs = parcae("replay", TRACE, "--profile", written(), "--costs", "artifact")
    assert costs.code == 2 and "--costs artifact" in costs.err
    missing = parcae("replay", TRACE, "--profile", tmp_path / "none.json")
    assert missing.code == 2 and "parcae profile" in missing.err
    monkeypatch.setattr("runtime.engine.profiling.memory_bytes", lambda device: (10**7, 10**7))
    small = parcae("profile", "gpt-30m")
    assert small.code == 2 and "parameters x 24 bytes" in small.err
    assert not Path("gpt-30m.profile.json").exists()
