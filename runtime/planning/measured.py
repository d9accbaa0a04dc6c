"""What `parcae profile` measured of a model on a device, as planning takes it from the file."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.planning.table import Table
from runtime.planning.training import TrainingSpec

FORM = 1  # of the file; a reader refuses others


@dataclass(frozen=True)
class MeasuredLayers:
    """Times and sizes of every layer, in the model's order, for one micro-batch of the template's size.

    `forward_s`, `backward_s`, `activation_bytes` are of a micro-batch, `optimiser_s` of a step. `message_s`
    is what a message between two workers takes beside its bytes. Gradients are reduced with
    `gradient_bytes_per_param`.
    """

    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    optimiser_s: tuple[float, ...]
    activation_bytes: tuple[float, ...]
    gradient_bytes_per_param: int
    message_s: float

    @property
    def work_s(self) -> tuple[float, ...]:
        """Forward and backward of each layer: what cuts balance."""
        return tuple(f + b for f, b in zip(self.forward_s, self.backward_s, strict=True))


def parse_measured(table: Table, params: tuple[int, ...], training: TrainingSpec) -> MeasuredLayers:
    """The content of a profile, for a model whose layers have `params` parameters.

    Raises:
        InputError: it is of another form or model, or has no times for these micro-batches.
    """
    form = table.count("parcae_profile", 0, low=0)
    if form != FORM:
        raise table.fail("parcae_profile", f"must be {FORM}: is this a file of `parcae profile`?")
    name = table.text("model")
    layers = _rows(table, "layers")
    found = tuple(layer.count("params", low=0) for layer in layers)
    if found != params:
        raise table.fail(
            "layers",
            f"is of {name}, with {len(found)} layers of {sum(found):,} parameters; this model has "
            f"{len(params)} of {sum(params):,}",
        )
    for key, wanted in (("dtype", training.dtype), ("recompute", training.recompute)):
        if table.data.get(key) != wanted:
            raise table.fail(
                key, f"was measured as {table.data.get(key)!r}, the model has {wanted!r}; profile it anew"
            )
    sizes = {row.count("size"): row for row in _rows(table, "micro_batches")}
    if training.micro_batch not in sizes:
        listed = ", ".join(str(size) for size in sorted(sizes)) or "none"
        raise table.fail(
            "micro_batches",
            f"has times for micro-batches of {listed}, not of {training.micro_batch}; "
            f"run parcae profile with --micro-batch {training.micro_batch}",
        )
    rows = _rows(sizes[training.micro_batch], "layers")
    if len(rows) != len(layers):
        raise table.fail("micro_batches", f"has {len(rows)} layers, not {len(layers)}")
    device = table.need("device")
    return MeasuredLayers(
        forward_s=tuple(row.number("forward_s") for row in rows),
        backward_s=tuple(row.number("backward_s") for row in rows),
        optimiser_s=tuple(layer.number("optimiser_s") for layer in layers),
        activation_bytes=tuple(row.number("activation_bytes") for row in rows),
        gradient_bytes_per_param=table.count("gradient_bytes_per_param"),
        message_s=device.number("message_s"),
    )


def _rows(table: Table, name: str) -> list[Table]:
    listed = table.data.get(name)
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise table.fail(name, "is missing; it is a list of tables")
    return [Table(row, table.source, table.key(f"{name}[{n}]")) for n, row in enumerate(listed)]
