"""How a model is trained: batch sizes, the optimiser's constants, and what changes from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from runtime.planning.table import Table

BYTES_PER_VALUE = {"fp32": 4, "fp16": 2, "bf16": 2}
SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True)
class TrainingSpec:
    """Batch sizes in samples, and AdamW's constants. `clip_norm` 0: no clipping.

    `recompute`: activations are not kept but computed again in the backward pass.
    `schedule` is how the learning rate falls to `min_learning_rate` once `warmup_steps` are over; it gets
    there after `decay_steps` of the run, the warm-up included. `dropout` is the share of values left out.
    Every `eval_every` steps (0: never) the loss of the last `eval_samples` samples of the data is taken,
    which are then never trained on.
    """

    mini_batch: int
    micro_batch: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    dtype: str = "fp32"
    recompute: bool = False
    schedule: str = "constant"
    warmup_steps: int = 0
    decay_steps: int = 0
    min_learning_rate: float = 0.0
    dropout: float = 0.0
    eval_every: int = 0
    eval_samples: int = 0

    @property
    def micro_batches(self) -> int:
        """How many micro-batches make one step, over all pipelines."""
        return self.mini_batch // self.micro_batch

    @property
    def held_out(self) -> int:
        """How many samples at the end of the data are kept from training; 0 without evaluation."""
        return self.eval_samples if self.eval_every else 0

    def evaluates(self, step: int) -> bool:
        """Whether `step` (from 0) takes the held-out loss, of the weights that it begins with."""
        return self.eval_every > 0 and (step + 1) % self.eval_every == 0

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of `step` (from 0): of nothing else, so that no history can change it.

        Linear warm-up from learning_rate / warmup_steps, then the schedule (the cosine is half a period, as
        in Loshchilov and Hutter, 2017, without restarts).
        """
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.learning_rate
        if step >= self.decay_steps:
            return self.min_learning_rate
        done = (step - self.warmup_steps) / (self.decay_steps - self.warmup_steps)
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * left

    @property
    def schedule_text(self) -> str:
        """The learning rate for people: `0.001, 10 steps of warm-up, cosine to 0.0001 at step 200`."""
        text = f"{self.learning_rate:g}"
        if self.warmup_steps:
            text += f", {self.warmup_steps:,} steps of warm-up"
        if self.schedule != "constant":
            text += f", {self.schedule} to {self.min_learning_rate:g} at step {self.decay_steps:,}"
        return text


def parse_training(table: Table) -> TrainingSpec:
    """The [training] table of a model's template.

    Raises:
        InputError: a key is missing, unknown or impossible.
    """
    mini_batch = table.count("mini_batch")
    spec = TrainingSpec(
        mini_batch=mini_batch,
        micro_batch=table.count("micro_batch"),
        learning_rate=table.number("learning_rate", TrainingSpec.learning_rate, above=0.0),
        weight_decay=table.number("weight_decay", TrainingSpec.weight_decay),
        beta1=table.number("beta1", TrainingSpec.beta1),
        beta2=table.number("beta2", TrainingSpec.beta2),
        epsilon=table.number("epsilon", TrainingSpec.epsilon, above=0.0),
        clip_norm=table.number("clip_norm", TrainingSpec.clip_norm),
        dtype=table.text("dtype", TrainingSpec.dtype),
        recompute=table.flag("recompute", TrainingSpec.recompute),
        schedule=table.text("schedule", TrainingSpec.schedule),
        warmup_steps=table.count("warmup_steps", TrainingSpec.warmup_steps, low=0),
        decay_steps=table.count("decay_steps", TrainingSpec.decay_steps, low=0),
        min_learning_rate=table.number("min_learning_rate", TrainingSpec.min_learning_rate),
        dropout=table.number("dropout", TrainingSpec.dropout),
        eval_every=table.count("eval_every", TrainingSpec.eval_every, low=0),
        eval_samples=table.count("eval_samples", mini_batch),
    )
    table.no_more()
    for name in ("beta1", "beta2", "dropout"):
        if getattr(spec, name) >= 1:
            raise table.fail(name, "must be below 1")
    if spec.dtype not in BYTES_PER_VALUE:
        raise table.fail("dtype", f"must be one of {', '.join(BYTES_PER_VALUE)}, not {spec.dtype!r}")
    _check_batches(table, spec)
    _check_schedule(table, spec)
    return spec


def _check_batches(table: Table, spec: TrainingSpec) -> None:
    size = spec.micro_batch
    if spec.mini_batch % size:
        raise table.fail(
            "micro_batch",
            f"must divide mini_batch: {spec.mini_batch} = {spec.mini_batch // size} x {size} + "
            f"{spec.mini_batch % size}",
        )
    if spec.eval_samples % size:
        raise table.fail(
            "eval_samples",
            f"must be whole micro-batches: {spec.eval_samples} = {spec.eval_samples // size} x {size} + "
            f"{spec.eval_samples % size}",
        )


def _check_schedule(table: Table, spec: TrainingSpec) -> None:
    if spec.schedule not in SCHEDULES:
        raise table.fail("schedule", f"must be one of {', '.join(SCHEDULES)}, not {spec.schedule!r}")
    if spec.schedule == "constant":
        for name in ("decay_steps", "min_learning_rate"):
            if getattr(spec, name):
                raise table.fail(name, 'means nothing without schedule = "linear" or "cosine"')
        return
    if spec.decay_steps <= spec.warmup_steps:
        raise table.fail(
            "decay_steps",
            f"must be above warmup_steps, {spec.warmup_steps}, for schedule = {spec.schedule!r}; "
            f"not {spec.decay_steps}",
        )
    if spec.min_learning_rate > spec.learning_rate:
        raise table.fail("min_learning_rate", f"must be at most learning_rate, {spec.learning_rate:g}")
