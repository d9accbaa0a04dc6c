"""A job with all that real training needs comes through preemptions as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from parcae_cli.catalogue import load_template
from runtime.control.job.job import LaunchRequest
from runtime.control.job.launch import read_start
from runtime.planning.errors import InputError
from runtime.planning.model import parse_model
from tests.end_to_end.harness import SEED, Finished, processes_of, train

pytestmark = pytest.mark.timeout(150)

STEPS = 60
TRACE = (
    "".join(f"0,add,n{k}\n" for k in range(1, 7))
    + "30,remove,n2\n60,kill,n1\n90,add,n7\n120,add,n8\n150,remove,n3\n180,kill,n4\n210,add,n9\n240,add,n10\n"
)


def test_dropout_ties_schedule_and_evaluation_survive_preemptions(tmp_path: Path) -> None:
    """Everything of gpt-tied on a token file equals a calm run, which goes on from a checkpoint half-way."""
    template = load_template("gpt-tied")
    template["training"] |= {"mini_batch": 24, "eval_every": 7, "eval_samples": 6}
    tokens = tmp_path / "tokens.bin"
    words = np.random.default_rng(3).integers(0, 256, 400, dtype=np.uint16)
    np.tile(words, 100).astype("<u2").tofile(tokens)  # 624 samples: the run goes through them twice
    options = {"template": template, "model": "gpt-tied", "corpus": (tokens,)}
    safe = tmp_path / "safe"

    # "reduce" is just before both ends swap their gradients of the table
    faults = (
        {"node": "n5", "step": 20, "point": "evaluate"},
        {"node": "n6", "step": 34, "point": "reduce"},
    )
    hard = train(tmp_path, "hard", trace=TRACE, nodes=8, steps=STEPS, speed=60, faults=faults, **options)
    # undisturbed, in two halves
    half = train(tmp_path, "half", nodes=4, steps=STEPS // 2, checkpoint=str(safe), **options)
    rest = train(tmp_path, "rest", nodes=3, steps=STEPS, start_from=str(safe), **options)

    assert hard.result.state == "done"
    assert (hard.result.samples_lost, hard.result.samples_repeated) == (0, 0)
    lost = {node for record in hard.result.migrations for node in record.nodes_lost}
    assert {"n1", "n2", "n4", "n5", "n6"} <= lost
    assert {record.noticed for record in hard.result.migrations} == {True, False}
    assert hard.losses == half.losses + rest.losses
    assert evaluated(hard) == evaluated(half) | evaluated(rest)
    assert sorted(evaluated(hard)) == list(range(6, STEPS, 7))
    assert hard.result.weights_sha256 == rest.result.weights_sha256
    assert hard.result.eval_loss == evaluated(rest)[55] < evaluated(half)[6]
    assert processes_of(tmp_path) == []

    about = json.loads((safe / f"step-{STEPS // 2}" / "checkpoint.json").read_text())
    assert about["template"] == template
    refuse_other_continuations(safe, tmp_path)


def evaluated(run: Finished) -> dict[int, float]:
    """The held-out loss of every step that has one."""
    return {line["step"]: line["eval_loss"] for line in run.metrics if "eval_loss" in line}


def refuse_other_continuations(safe: Path, home: Path) -> None:
    """Another model of the same sizes, seed or batch would not go on but begin something else."""
    for table, key, value, message in (
        ("gpt", "tied_embeddings", False, r"another \[gpt\]"),
        ("training", "mini_batch", 12, "another training.mini_batch: 24, not 12"),
        ("training", "eval_every", 0, "another number of held-out samples: 6, not 0"),
        ("training", "dtype", "fp32", "another seed .--seed.: 11, not 12"),
    ):
        template = json.loads((safe / f"step-{STEPS // 2}" / "checkpoint.json").read_text())["template"]
        template[table][key] = value
        seed = SEED + (key == "dtype")
        request = LaunchRequest("x", "m", home, steps=999, seed=seed, start_from=str(safe), template=template)
        with pytest.raises(InputError, match=message):
            read_start(request, parse_model(template, "m"))
