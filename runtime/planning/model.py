"""What is trained: a model as a list of layers, with the sizes that planning and the engine both rely on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from runtime.planning.layout import layout_problem
from runtime.planning.measured import MeasuredLayers, parse_measured
from runtime.planning.table import Table
from runtime.planning.training import BYTES_PER_VALUE, TrainingSpec, parse_training
from runtime.planning.types import Layout

FAMILIES = ("gpt", "profile")


@dataclass(frozen=True)
class LayerSpec:
    """One layer, the unit that stages are cut from.

    `output_bytes_per_sample` crosses to the next stage, and is all that is kept when activations are
    recomputed.
    """

    name: str
    params: int
    forward_flops_per_sample: float
    activation_bytes_per_sample: float
    output_bytes_per_sample: float


@dataclass(frozen=True)
class GptShape:
    """The numbers that make a GPT: blocks, width, heads, vocabulary and sequence length in tokens.

    `tied_embeddings`: the output matrix is the token table, one set of numbers in two layers.
    """

    layers: int
    d_model: int
    heads: int
    vocab: int
    seq: int
    tied_embeddings: bool = False

    @property
    def tied_params(self) -> int:
        """Parameters that the head shares with the embedding; each of the two holds a copy."""
        return self.vocab * self.d_model if self.tied_embeddings else 0


@dataclass(frozen=True)
class DeviceSpec:
    """The GPU that estimates assume. `flops_per_s` is what training code reaches, not the peak."""

    name: str
    memory_bytes: int
    flops_per_s: float
    link_bytes_per_s: float


@dataclass(frozen=True)
class PriceSpec:
    """What an instance costs, USD an hour."""

    spot_usd_per_hour: float
    on_demand_usd_per_hour: float


@dataclass(frozen=True)
class ModelSpec:
    """A model template, parsed and checked.

    `gpt` is None for models that can be replayed but not trained. `artifact` names the measured profile;
    `iteration_s` has the template's own measured rows, (pipelines, stages) -> seconds a step.
    `units_per_sample` turns samples into `unit` (tokens or images) where costs are printed. `measured` is
    what `parcae profile` found; the device is then the one that it ran on.
    """

    name: str
    family: str
    layers: tuple[LayerSpec, ...]
    gpt: GptShape | None
    training: TrainingSpec
    artifact: str | None
    device: DeviceSpec
    price: PriceSpec
    unit: str
    units_per_sample: int
    bamboo_layout: tuple[int, int] | None = None
    iteration_s: Mapping[tuple[int, int], float] = field(default_factory=dict)
    measured: MeasuredLayers | None = None

    @property
    def params(self) -> int:
        """Parameters of the whole model; what two layers share counts once."""
        return self.state_params - (self.gpt.tied_params if self.gpt else 0)

    @property
    def state_params(self) -> int:
        """Parameters that the layers hold, copies included."""
        return sum(layer.params for layer in self.layers)


def parse_model(data: Mapping[str, Any], source: str) -> ModelSpec:
    """A model template as TOML's dictionary; `source` is the file's name, for messages.

    Raises:
        InputError: a key is missing, unknown or impossible.
    """
    top = Table(data, source)
    name = top.text("name")
    family = top.text("family")
    if family not in FAMILIES:
        raise top.fail("family", f"must be one of {', '.join(FAMILIES)}, not {family!r}")
    training = parse_training(top.need("training"))
    gpt = None
    if family == "gpt":
        gpt = _gpt_shape(top.need("gpt"))
        layers = gpt_layers(gpt, training.dtype)
    else:
        layers = _listed_layers(top)
    unit, units_per_sample = ("token", gpt.seq) if gpt else ("image", 1)
    profile = top.table("profile", required=False)
    artifact, bamboo = None, None
    rows: dict[tuple[int, int], float] = {}
    if profile is None and gpt is None:
        raise top.fail("profile.unit", "is missing; say what a sample counts in: token, image, ..")
    if profile is not None:
        artifact = profile.text("artifact") if "artifact" in profile.data else None
        if "unit" not in profile.data and (gpt is None or "units_per_sample" in profile.data):
            raise profile.fail("unit", "is missing; say what a sample counts in: token, image, ..")
        unit = profile.text("unit", unit)
        units_per_sample = profile.count("units_per_sample", units_per_sample)
        if "bamboo_pipelines" in profile.data:
            bamboo = (profile.count("bamboo_pipelines"), profile.count("bamboo_stages"))
        rows = _measured_rows(profile, len(layers), training.micro_batches)
        profile.no_more()
    device = _device(top.need("device"))
    measured, found = None, top.table("measured", required=False)
    if found is not None:
        measured = parse_measured(found, tuple(layer.params for layer in layers), training)
        device = _device(found.need("device"), strict=False)
        layers = tuple(
            replace(layer, activation_bytes_per_sample=size / training.micro_batch)
            for layer, size in zip(layers, measured.activation_bytes, strict=True)
        )
    price_table = top.need("price")
    price = PriceSpec(
        spot_usd_per_hour=price_table.number("spot_usd_per_hour"),
        on_demand_usd_per_hour=price_table.number("on_demand_usd_per_hour"),
    )
    price_table.no_more()
    top.no_more()
    return ModelSpec(
        name=name,
        family=family,
        layers=layers,
        gpt=gpt,
        training=training,
        artifact=artifact,
        device=device,
        price=price,
        unit=unit,
        units_per_sample=units_per_sample,
        bamboo_layout=bamboo,
        iteration_s={} if measured else rows,
        measured=measured,
    )


def _measured_rows(profile: Table, layers: int, micro_batches: int) -> dict[tuple[int, int], float]:
    """The rows [pipelines, stages, milliseconds a step] of `iteration_ms`, in seconds; none if absent."""
    profile.used.add("iteration_ms")
    listed = profile.data.get("iteration_ms", [])
    if not isinstance(listed, list):
        raise profile.fail("iteration_ms", "must be a list of [pipelines, stages, milliseconds]")
    rows: dict[tuple[int, int], float] = {}
    for number, row in enumerate(listed):
        key = f"iteration_ms[{number}]"
        if not isinstance(row, list) or len(row) != 3:
            raise profile.fail(key, f"must be [pipelines, stages, milliseconds], not {row!r}")
        cells = Table(
            dict(zip(("pipelines", "stages", "ms"), row, strict=True)), profile.source, profile.key(key)
        )
        layout = (cells.count("pipelines"), cells.count("stages"))
        if problem := layout_problem(Layout(*layout), layers, micro_batches):
            raise profile.fail(key, problem)
        rows[layout] = cells.number("ms", above=0.0) / 1000
    return rows


def gpt_layers(shape: GptShape, dtype: str = "fp32") -> tuple[LayerSpec, ...]:
    """The layers of a GPT: embedding, blocks, head; parameter counts are exact.

    Embedding: token and position tables. Block: pre-LN, qkv and output projections with bias, a 4x MLP.
    Head: final LayerNorm and an output matrix without bias: its own, or a copy of the token table. Activation
    bytes follow Korthikanti et al. 2022: s x h x (34 + 5 a s / h) for 16-bit values.
    """
    d, seq, vocab = shape.d_model, shape.seq, shape.vocab
    wide = BYTES_PER_VALUE[dtype] / 2
    boundary = BYTES_PER_VALUE[dtype] * seq * d
    block = LayerSpec(
        name="block",
        params=12 * d * d + 13 * d,
        forward_flops_per_sample=24.0 * seq * d * d + 4.0 * seq * seq * d,
        activation_bytes_per_sample=wide * (34.0 * seq * d + 5.0 * shape.heads * seq * seq),
        output_bytes_per_sample=boundary,
    )
    blocks = tuple(
        LayerSpec(
            f"block{index}",
            block.params,
            block.forward_flops_per_sample,
            block.activation_bytes_per_sample,
            block.output_bytes_per_sample,
        )
        for index in range(shape.layers)
    )
    embedding = LayerSpec("embedding", (vocab + seq) * d, 2.0 * seq * d, 2.0 * boundary, boundary)
    head = LayerSpec(
        "head", vocab * d + 2 * d, 2.0 * seq * d * vocab, 2.0 * boundary + 6.0 * seq * vocab * wide, 4.0
    )
    return (embedding, *blocks, head)


def _gpt_shape(table: Table) -> GptShape:
    shape = GptShape(
        layers=table.count("layers"),
        d_model=table.count("d_model"),
        heads=table.count("heads"),
        vocab=table.count("vocab"),
        seq=table.count("seq"),
        tied_embeddings=table.flag("tied_embeddings", GptShape.tied_embeddings),
    )
    table.no_more()
    if shape.d_model % shape.heads:
        raise table.fail("heads", f"must divide d_model: {shape.d_model} / {shape.heads} is not whole")
    return shape


def _listed_layers(top: Table) -> tuple[LayerSpec, ...]:
    top.used.add("layers")
    rows = top.data.get("layers")
    if not isinstance(rows, list) or not rows:
        raise top.fail(
            "layers", "is missing; list [[layers]] with name, params, forward_flops_per_sample, .."
        )
    layers: list[LayerSpec] = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise top.fail(f"layers[{number}]", "must be a table")
        table = Table(row, top.source, f"layers[{number}]")
        name, repeat = table.text("name"), table.count("count", 1)
        for copy in range(repeat):
            layers.append(
                LayerSpec(
                    name=f"{name}{copy}" if repeat > 1 else name,
                    params=table.count("params", low=0),
                    forward_flops_per_sample=table.number("forward_flops_per_sample"),
                    activation_bytes_per_sample=table.number("activation_bytes_per_sample"),
                    output_bytes_per_sample=table.number("output_bytes_per_sample"),
                )
            )
        table.no_more()
    total = top.count("params", sum(layer.params for layer in layers))
    if total != sum(layer.params for layer in layers):
        listed = sum(layer.params for layer in layers)
        raise top.fail("params", f"the layers add up to {listed:,}, not {total:,}")
    return tuple(layers)


def _device(table: Table, strict: bool = True) -> DeviceSpec:
    device = DeviceSpec(
        name=table.text("name"),
        memory_bytes=table.count("memory_bytes"),
        flops_per_s=table.number("flops_per_s", above=0.0),
        link_bytes_per_s=table.number("link_bytes_per_s", above=0.0),
    )
    if strict:
        table.no_more()
    return device
