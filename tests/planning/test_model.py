"""Templates of models, good and bad."""

from __future__ import annotations

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from parcae_cli.catalogue import load_model, model_names, templates_folder
from runtime.planning.errors import InputError
from runtime.planning.model import parse_model
from runtime.planning.profile import estimated_profile
from runtime.planning.types import Layout

TINY: dict[str, Any] = tomllib.loads((templates_folder() / "models/gpt-tiny.toml").read_text())


def test_every_shipped_model_is_good() -> None:
    """All of them parse, and are called as their file is."""
    assert {"gpt-tiny", "gpt3-6b", "gpt2-1.5b", "bert-large", "resnet152", "vgg19"} <= set(model_names())
    for name in model_names():
        spec = load_model(name)
        assert spec.name == name and spec.params > 0 and spec.training.micro_batches >= 1


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resnet152", 60_192_808),
        ("vgg19", 143_667_240),
        ("gpt-tiny", 336_896),
        ("gpt-tied", 320_512),
        ("bert-large", 365_875_200),
    ],
)
def test_parameter_counts_are_exact(name: str, params: int) -> None:
    """Those of the papers, and of our own GPT."""
    assert load_model(name).params == params


def test_a_gpt_block_has_the_parameters_of_the_measured_one() -> None:
    """12 d^2 + 13 d, which is what the artifact's profile of GPT-3 says too."""
    spec = load_model("gpt3-6b")
    assert spec.layers[1].params == 201_379_840
    assert [spec.layers[0].name, spec.layers[-1].name] == ["embedding", "head"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("family", "rnn", "my.toml: family: must be one of gpt, profile"),
        ("name", None, "my.toml: name: is missing"),
        ("gpt", None, "my.toml: gpt: this table is missing"),
        ("gpt.heads", 5, "my.toml: gpt.heads: must divide d_model"),
        ("gpt.layers", 0, "my.toml: gpt.layers: must be at least 1"),
        ("gpt.layers", 2.5, "my.toml: gpt.layers: must be a whole number"),
        ("gpt.layers", "six", "my.toml: gpt.layers: must be a number"),
        ("training.micro_batch", 7, "my.toml: training.micro_batch: must divide mini_batch"),
        ("training.beta1", 1.5, "my.toml: training.beta1: must be below 1"),
        ("training.dtype", "int8", "my.toml: training.dtype: must be one of"),
        ("training.learning_rate", 0, "my.toml: training.learning_rate: must be above 0"),
        ("device.memory_bytes", -1, "my.toml: device.memory_bytes: must be at least 1"),
        ("price.spot_usd_per_hour", None, "my.toml: price.spot_usd_per_hour: is missing"),
        ("training.schedule", "step", "my.toml: training.schedule: must be one of constant, linear, cosine"),
        ("training.schedule", "cosine", "my.toml: training.decay_steps: must be above warmup_steps, 0"),
        ("training.decay_steps", 5, "my.toml: training.decay_steps: means nothing without schedule"),
        ("training.warmup_steps", -1, "my.toml: training.warmup_steps: must be at least 0"),
        ("training.dropout", 1, "my.toml: training.dropout: must be below 1"),
        ("training.eval_samples", 3, "my.toml: training.eval_samples: must be whole micro-batches: 3"),
        ("gpt.tied_embeddings", 1, "my.toml: gpt.tied_embeddings: must be true or false"),
        ("training.momentum", 1, "my.toml: training.momentum: unknown key"),
    ],
)
def test_a_bad_template_is_refused_by_file_and_key(path: str, value: object, message: str) -> None:
    """The message says what is wrong where."""
    data = copy.deepcopy(TINY)
    *tables, key = path.split(".")
    table = data
    for name in tables:
        table = table[name]
    if value is None:
        del table[key]
    else:
        table[key] = value
    with pytest.raises(InputError, match=message):
        parse_model(data, "my.toml")


def test_layers_that_do_not_add_up_are_refused() -> None:
    """A listed model may state its total, and then the layers must have it."""
    data = tomllib.loads((templates_folder() / "models/vgg19.toml").read_text())
    data["params"] += 1
    with pytest.raises(InputError, match="params: the layers add up to 143,667,240"):
        parse_model(data, "vgg.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": None}, "my.toml: profile.unit: is missing; say what a sample counts in"),
        ({"iteration_ms": [[1, 2, -4]]}, r"my.toml: profile.iteration_ms\[0\].ms: must be above 0, not -4"),
        ({"iteration_ms": [[1, 2, 9], [1, 2]]}, r"profile.iteration_ms\[1\]: must be \[pipelines, stages"),
        ({"iteration_ms": [[1, 99, 9]]}, r"iteration_ms\[0\]: 1x99: 99 stages out of 19 layers"),
        ({"iteration_ms": [[1, "two", 9]]}, r"iteration_ms\[0\].stages: must be a number, not 'two'"),
        ({"iteration_ms": 9}, "profile.iteration_ms: must be a list of"),
        ({"artifact": ""}, "profile.artifact: must be a text"),
    ],
)
def test_a_bad_profile_in_a_template_is_refused_by_file_and_key(
    changes: dict[str, object], message: str
) -> None:
    """Negative times, a missing unit, rows that cannot be."""
    data = tomllib.loads((templates_folder() / "models/vgg19.toml").read_text())
    for key, value in changes.items():
        data["profile"][key] = value
        if value is None:
            del data["profile"][key]
    with pytest.raises(InputError, match=message):
        parse_model(data, "my.toml")


def test_rows_of_a_template_are_kept_and_the_estimates_follow_them() -> None:
    """A step that was measured at twice the estimate makes every estimate beside it twice as long."""
    data = tomllib.loads((templates_folder() / "models/vgg19.toml").read_text())
    plain = estimated_profile(parse_model(data, "my.toml"), 8)
    seen_ms = 2000 * plain.iteration_s[Layout(2, 4)]
    data["profile"]["iteration_ms"] = [[2, 4, seen_ms]]
    fitted = estimated_profile(parse_model(data, "my.toml"), 8)
    assert fitted.iteration_s[Layout(2, 4)] == pytest.approx(seen_ms / 1000)
    assert fitted.iteration_s[Layout(1, 4)] == pytest.approx(2 * plain.iteration_s[Layout(1, 4)])


def test_a_model_of_the_users_own(tmp_path: Path) -> None:
    """A path that ends in .toml is read; what is not there or not TOML is said."""
    path = tmp_path / "mine.toml"
    path.write_text((templates_folder() / "models/gpt-tiny.toml").read_text())
    assert load_model(str(path)).name == "gpt-tiny"
    path.write_text("= nonsense")
    with pytest.raises(InputError, match="is not TOML"):
        load_model(str(path))
    with pytest.raises(InputError, match="no such file"):
        load_model(str(tmp_path / "other.toml"))
    with pytest.raises(InputError, match="is a folder"):
        load_model(str(tmp_path))
    other = tmp_path / "mine.json"
    other.write_text(json.dumps(TINY))
    assert load_model(str(other)).params == load_model("gpt-tiny").params
    for text, said in (("{", "is not JSON"), ("[1]", "must be a JSON object")):
        other.write_text(text)
        with pytest.raises(InputError, match=said):
            load_model(str(other))
    with pytest.raises(InputError, match="no model 'gpt-9'; there are"):
        load_model("gpt-9")
