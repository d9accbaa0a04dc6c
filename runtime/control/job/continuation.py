"""Whether a job can go on from a checkpoint as if it had never stopped."""

from __future__ import annotations

from runtime.control.backup.checkpoint import Checkpoint
from runtime.planning.errors import InputError
from runtime.planning.model import ModelSpec, parse_model


def check_continues(start: Checkpoint, folder: str, spec: ModelSpec, seed: int) -> None:
    """The model must be the very same, and so must all that decides which samples come next.

    Raises:
        InputError: something differs; the message says what, and what it was.
    """
    before = parse_model(start.template, f"{folder}: its template")
    pairs = (
        ("[gpt]", before.gpt, spec.gpt),
        ("training.mini_batch", before.training.mini_batch, spec.training.mini_batch),
        ("number of held-out samples", before.training.held_out, spec.training.held_out),
        ("seed (--seed)", start.seed, seed),
    )
    for what, was, wanted in pairs:
        if was != wanted:
            raise InputError(f"{folder}: was trained with another {what}: {was}, not {wanted}; give the same")
