"""Dropout, schedule, tied embeddings, evaluation, clipping: the same at any layout and after any death."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runtime.control import messages
from runtime.control.backup import checkpoint
from runtime.control.backup.server import Backup
from runtime.control.training.votes import Ballot
from runtime.planning.ledger import SampleOrder
from runtime.planning.model import parse_model
from tests.engine.driver import Crew, tiny_template

STEPS = 4
NAMES = [f"w{index}" for index in range(6)]
VICTIM = "victim"
TOKEN = "7c" * 16
EVERYTHING: dict[str, Any] = {
    "dropout": 0.1,
    "schedule": "cosine",
    "warmup_steps": 2,
    "decay_steps": 6,
    "min_learning_rate": 1e-4,
    "clip_norm": 0.5,  # far below the norm at the start, so that it clips
    "eval_every": 2,
    "eval_samples": 10,  # five micro-batches: fewer than six pipelines
}


def template(**training: Any) -> dict[str, Any]:
    """A gpt-tiny of three blocks with everything turned on."""
    made = tiny_template(**{**EVERYTHING, **training})
    made["gpt"] |= {"layers": 3, "tied_embeddings": True}
    return made


@dataclass
class History:
    """What a coordinator would have recorded."""

    losses: list[float] = field(default_factory=list)
    held_out: list[float | None] = field(default_factory=list)
    digests: dict[int, str] = field(default_factory=dict)


def decide(crew: Crew, generation: int, step: int, names: Sequence[str], history: History) -> float:
    """Collect the votes of a step; returns the clip's factor."""
    ballot = Ballot(generation, step, len(names))
    for name, vote in zip(names, crew.votes(names), strict=True):
        complete = ballot.cast(name, vote)
    assert complete
    ballot.check_coverage(12)
    history.losses.append(ballot.loss)
    history.held_out.append(ballot.held_out_loss)
    scale = ballot.clip_scale(crew.template["training"]["clip_norm"])
    assert scale < 1
    return scale


def carry_on(
    crew: Crew,
    generation: int,
    steps: range,
    names: Sequence[str],
    history: History,
    begin_next: bool = False,
) -> None:
    """Commit these steps, clipped; the last two states of the run go to the backup, if there is one."""
    for step in steps:
        scale = decide(crew, generation, step, names, history)
        for name in names:
            proceed = step + 1 < steps.stop or begin_next
            crew.workers[name].send(messages.Commit(generation, step, scale, proceed, step + 2 >= STEPS))


def start(crew: Crew, generation: int, pipelines: int, stages: int, names: Sequence[str]) -> None:
    """Begin step 0 from the seed."""
    crew.prepare(generation, pipelines, stages, names)
    crew.prepared(names)
    crew.from_seed(generation, stages, names)


def whole_run(crew: Crew, generation: int, pipelines: int, stages: int) -> History:
    """All steps at one layout."""
    names, history = NAMES[: pipelines * stages], History()
    start(crew, generation, pipelines, stages, names)
    carry_on(crew, generation, range(STEPS), names, history)
    history.digests = crew.digests(names)
    return history


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew([*NAMES, VICTIM], template())
    yield crew
    crew.close()


@pytest.fixture(scope="module")
def alone(crew: Crew) -> History:
    """One process by itself."""
    return whole_run(crew, 1, 1, 1)


@pytest.mark.parametrize(
    ("generation", "pipelines", "stages"), [(2, 1, 2), (3, 3, 2), (4, 2, 3), (5, 6, 1), (6, 1, 5)]
)
def test_every_layout_gives_the_same_run(
    crew: Crew, alone: History, generation: int, pipelines: int, stages: int
) -> None:
    """Losses, held-out losses and weights are bit for bit those of one process."""
    assert whole_run(crew, generation, pipelines, stages) == alone
    assert [loss is not None for loss in alone.held_out] == [False, True, False, True]


def test_both_ends_hold_the_same_table(crew: Crew, alone: History) -> None:
    """Weights and moments of the tied copies agree to the bit, which every run reports beside its layers."""
    assert -1 in alone.digests  # Crew.digests compares what the holders say


def test_a_death_and_a_recut_change_nothing(crew: Crew, alone: History) -> None:
    """A last stage dies in mid-step; survivors and new nodes form longer pipelines, and the table moves."""
    history, before = History(), [*NAMES[:3], VICTIM]
    start(crew, 10, 2, 2, before)
    carry_on(crew, 10, range(2), before, history, begin_next=True)
    crew.workers[VICTIM].kill()
    for worker in (crew.workers[name] for name in NAMES[:3]):
        worker.send(messages.Abort(10))
        # It may have voted before, or told of the broken connection.
        while not isinstance(message := worker.inbox.get(timeout=60), messages.Aborted):
            assert isinstance(message, messages.Vote | messages.Failed)
        assert message.step == 2
    del crew.workers[VICTIM]
    members = [NAMES[0], NAMES[4], NAMES[5]]  # 2x2 becomes 1x3: two who hold nothing join
    crew.prepare(11, 1, 3, members)
    old, new = crew.cuts(2), crew.cuts(3)
    for index, name in enumerate(members):
        fetches = [
            [layer, crew.address(NAMES[0] if layer in old[0] else NAMES[1])]
            for layer in new[index]
            if not (index == 0 and layer in old[0])
        ]
        crew.workers[name].send(messages.Switch(11, 2, fetches))
    crew.prepared(members)
    carry_on(crew, 11, range(2, STEPS), members, history)
    history.digests = crew.digests(members)
    assert history == alone


@pytest.mark.parametrize(
    ("generation", "training"), [(20, {"recompute": True}), (30, {"recompute": True, "dtype": "bf16"})]
)
def test_recompute_and_bf16_with_everything_on(
    crew: Crew, alone: History, generation: int, training: dict[str, Any]
) -> None:
    """Dropout that is computed again leaves out the same values; in bf16 layouts agree among themselves."""
    crew.configure(template(**training))
    runs = [whole_run(crew, generation, 2, 2), whole_run(crew, generation + 1, 1, 1)]
    assert runs[0] == runs[1]
    assert (runs[0] == alone) is ("dtype" not in training)
    if "dtype" in training:
        assert runs[0].losses == pytest.approx(alone.losses, rel=0.02)


def test_odd_sizes_keep_the_promise(crew: Crew) -> None:
    """No width is a multiple of a vector register: tails, and where a layer begins, change nothing."""
    odd = template()
    odd["gpt"] |= {"d_model": 15, "heads": 3, "vocab": 257, "seq": 9}
    crew.configure(odd)
    runs = [whole_run(crew, 33 + k, *layout) for k, layout in enumerate([(1, 1), (2, 3)])]
    assert runs[0] == runs[1]


def test_fast_mode_stays_close_and_its_copies_equal(crew: Crew, alone: History) -> None:
    """Rounded sums differ in the last bits from exact ones, but not between the two ends of a pipeline."""
    crew.configure(template(), exact=False)
    run = whole_run(crew, 36, 2, 2)
    assert -1 in run.digests
    assert run.losses == pytest.approx(alone.losses, rel=1e-5)


def test_plain_pytorch_agrees_and_reads_the_checkpoint(crew: Crew, tmp_path: Path) -> None:
    """One shared nn.Parameter, torch's AdamW, clipping and schedule give the same weights within rounding."""
    import torch
    from safetensors.torch import load_file

    from runtime.engine.data import Corpus
    from runtime.engine.models import gpt
    from runtime.engine.numerics import Numerics, dropout_seed

    spec = parse_model(template(), "test")
    assert spec.gpt is not None
    training, seed = spec.training, 1
    corpus = Corpus([], spec.gpt.seq, spec.gpt.vocab)
    modules = [gpt.build_layer(spec.gpt, index) for index in range(5)]
    for index, module in enumerate(modules):
        module.to_empty(device="cpu")
        gpt.initialise_layer(module, spec.gpt, index, seed)
    modules[-1].output.weight = modules[0].token  # type: ignore[union-attr]
    plain = torch.nn.ModuleList(modules)  # state_dict's names are the checkpoint's: 0.token, 1.qkv.weight, ..
    assert sum(p.numel() for p in plain.parameters()) == spec.params
    constants = {"betas": (training.beta1, training.beta2), "eps": training.epsilon}
    optimiser = torch.optim.AdamW(plain.parameters(), weight_decay=training.weight_decay, **constants)
    numerics = Numerics.of(training, torch.device("cpu"))

    def loss_of(ids: Sequence[int], step: int, k: int | None) -> torch.Tensor:
        out, targets = corpus.batch(ids)
        for index, module in enumerate(modules):
            out = numerics.forward(module, out, None if k is None else dropout_seed(seed, step, k, index))
        return gpt.loss_of(out, targets)

    order = SampleOrder(corpus.samples - training.eval_samples, training.mini_batch, seed)
    for step in range(STEPS):
        ids = order.samples(step)
        optimiser.zero_grad()
        for k in range(12):
            (loss_of(ids[2 * k : 2 * k + 2], step, k) / 12).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), training.clip_norm)
        for group in optimiser.param_groups:
            group["lr"] = training.learning_rate_at(step)
        optimiser.step()

    backup = Backup(layers=5, token=bytes.fromhex(TOKEN))
    try:
        crew.configure(template(), backup=(backup.host, backup.port), token=TOKEN)
        history = whole_run(crew, 40, 2, 2)
        assert backup.wait_for(STEPS, timeout_s=20)
        copies = {
            step: {layer: backup.store.get(step, layer) or b"" for layer in range(5)}
            for step in (STEPS - 1, STEPS)
        }
    finally:
        backup.close()
    parameters = [
        checkpoint.Parameter(index, name, tuple(p.shape))
        for index, module in enumerate(modules)
        for name, p in module.named_parameters()
    ]

    def weights_of(step: int) -> dict[str, torch.Tensor]:
        layers = copies[step]
        path = checkpoint.write(tmp_path, checkpoint.Checkpoint(step, seed, template(), layers), parameters)
        return load_file(path / "model.safetensors")

    weights = weights_of(STEPS)
    assert torch.equal(weights["0.token"], weights["4.output.weight"])
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=2e-6)
    plain.load_state_dict(weights_of(STEPS - 1))  # what the last step evaluated, before it trained
    held_out = range(corpus.samples - training.eval_samples, corpus.samples)
    with torch.no_grad():
        losses = [float(loss_of(held_out[k : k + 2], 0, None)) for k in range(0, 10, 2)]
    assert history.held_out[-1] == pytest.approx(sum(losses) / 5, rel=1e-6)
