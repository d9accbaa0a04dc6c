"""How fast a model trains under each layout, and what its stages weigh: measured or estimated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import islice
from statistics import median
from typing import Any

from runtime.planning.errors import InputError
from runtime.planning.estimate import estimate_iteration_s
from runtime.planning.layout import Cuts, cut_layers
from runtime.planning.model import ModelSpec
from runtime.planning.placement import instances_needed
from runtime.planning.types import Layout

# fp16 weights and gradients are not migrated; the fp32 weights and Adam's two moments are.
STATE_BYTES_PER_PARAM = 12


@dataclass(frozen=True)
class Profile:
    """A model's speed and sizes, as the planner sees them.

    `iteration_s` has a row for every layout that can run, in seconds a step; a layout without a row cannot
    run, and `refused` says why where somebody worked it out. `layer_work` is what the cuts balance. Samples
    are turned into `unit` (tokens, images) by `units_per_sample`.
    """

    name: str
    mini_batch: int
    micro_batch: int
    layer_params: tuple[int, ...]
    layer_work: tuple[float, ...]
    iteration_s: Mapping[Layout, float]
    unit: str = "sample"
    units_per_sample: int = 1
    state_bytes_per_param: int = STATE_BYTES_PER_PARAM
    refused: Mapping[Layout, str] = field(default_factory=dict)

    def __hash__(self) -> int:
        return id(self)

    @cached_property
    def layer_bytes(self) -> tuple[int, ...]:
        """What moving each layer's state takes, in bytes."""
        return tuple(params * self.state_bytes_per_param for params in self.layer_params)

    @cached_property
    def layouts(self) -> tuple[Layout, ...]:
        """Every layout that can run, smallest first."""
        return tuple(sorted(self.iteration_s, key=lambda layout: (layout.positions, layout)))

    @cached_property
    def fewest_nodes(self) -> int | None:
        """Nodes that the smallest layout needs; None if no layout can run at all."""
        return self.layouts[0].positions if self.layouts else None

    def feasible(self, nodes: int) -> tuple[Layout, ...]:
        """The layouts that `nodes` nodes can run, smallest first."""
        return tuple(layout for layout in self.layouts if layout.positions <= nodes)

    def samples_per_s(self, layout: Layout) -> float:
        """Samples committed a second while nothing happens; 0 for a layout that cannot run."""
        seconds = self.iteration_s.get(layout)
        return self.mini_batch / seconds if seconds else 0.0

    def best(self, nodes: int) -> Layout | None:
        """The fastest layout for `nodes` nodes; of equals the smallest. None: nothing fits."""
        return max(
            self.feasible(nodes),
            key=lambda layout: (self.samples_per_s(layout), -layout.positions),
            default=None,
        )

    def contenders(self, low: int, high: int, most: int, gpus: int = 1) -> tuple[Layout, ...]:
        """About `most` layouts that could matter with `low` to `high` nodes of `gpus` GPUs, smallest first.

        For every number of nodes the fastest few, and what each of them becomes when it gives up a pipeline.
        """
        feasible = self.feasible(high * gpus)
        if len(feasible) <= most:
            return feasible
        fastest = sorted(feasible, key=lambda layout: (-self.samples_per_s(layout), layout.positions))
        kept: set[Layout] = set()
        for each in (8, 6, 4, 3, 2, 1):
            kept = set()
            for nodes in range(max(1, low), high + 1):
                fitting = (layout for layout in fastest if layout.positions <= nodes * gpus)
                kept.update(islice(fitting, each))
            kept |= {Layout(layout.pipelines - 1, layout.stages) for layout in kept} & set(feasible)
            if len(kept) <= most:
                break
        return tuple(layout for layout in feasible if layout in kept)

    @cached_property
    def _cuts(self) -> dict[int, Cuts]:
        return {}

    def cuts(self, stages: int) -> Cuts:
        """Which layers each of `stages` stages has."""
        if stages not in self._cuts:
            self._cuts[stages] = cut_layers(self.layer_work, stages)
        return self._cuts[stages]

    @cached_property
    def _stage_bytes(self) -> dict[int, tuple[int, ...]]:
        return {}

    def stage_bytes(self, stages: int) -> tuple[int, ...]:
        """State bytes of each stage."""
        if stages not in self._stage_bytes:
            self._stage_bytes[stages] = tuple(
                sum(self.layer_bytes[layer] for layer in stage) for stage in self.cuts(stages)
            )
        return self._stage_bytes[stages]

    @cached_property
    def _recut_bytes(self) -> dict[tuple[int, int], int]:
        return {}

    def recut_bytes(self, before: int, after: int) -> int:
        """The most bytes that an `after`-stage cut's stage lacks on the node that held the most of it."""
        if (before, after) not in self._recut_bytes:
            old = [frozenset(stage) for stage in self.cuts(before)]
            self._recut_bytes[before, after] = max(
                size - max(sum(self.layer_bytes[layer] for layer in held.intersection(stage)) for held in old)
                for stage, size in zip(self.cuts(after), self.stage_bytes(after), strict=True)
            )
        return self._recut_bytes[before, after]

    @cached_property
    def total_bytes(self) -> int:
        """State bytes of the whole model."""
        return sum(self.layer_bytes)

    def why_nothing_fits(self, nodes: int, gpus: int = 1) -> str:
        """The arithmetic of having too few nodes."""
        if self.fewest_nodes is None:
            reasons = sorted(set(self.refused.values()))
            return f"{self.name}: no layout can run: {reasons[0] if reasons else 'the profile has no row'}"
        if gpus > 1:
            fewest = instances_needed(self.layouts[0], gpus)
            return (
                f"{self.name} needs at least {fewest} nodes of {gpus} GPUs ({self.layouts[0]}), {nodes} here"
            )
        return f"{self.name} needs at least {self.fewest_nodes} nodes ({self.layouts[0]}), {nodes} here"

    def corrected(self, observed_s: Mapping[Layout, float]) -> Profile:
        """The profile after seeing real step times, in seconds.

        Layouts that were seen get what was seen; the others keep their row times the median ratio of seen to
        expected, since what an estimate gets wrong (the device's speed) it mostly gets wrong everywhere.
        """
        ratios = [
            seconds / self.iteration_s[layout]
            for layout, seconds in observed_s.items()
            if layout in self.iteration_s and seconds > 0
        ]
        if not ratios:
            return self
        scale = median(ratios)
        rows = {layout: seconds * scale for layout, seconds in self.iteration_s.items()}
        rows.update(
            {layout: observed_s[layout] for layout in observed_s if layout in rows and observed_s[layout] > 0}
        )
        return replace(self, iteration_s=rows)


def estimated_profile(
    spec: ModelSpec, max_nodes: int, measured: Profile | None = None, layouts: Iterable[Layout] | None = None
) -> Profile:
    """A profile for every layout of up to `max_nodes` nodes, from layer costs and memory.

    Rows of `measured` (same model, same device), or else the template's own, are kept as they are, and the
    estimates beside them are scaled by the median ratio of measured to estimated.
    """
    rows: dict[Layout, float] = {}
    refused: dict[Layout, str] = {}
    work = tuple(layer.forward_flops_per_sample for layer in spec.layers)
    if spec.measured is not None:
        work = spec.measured.work_s
    for layout in layouts if layouts is not None else all_layouts(spec, max_nodes):
        seconds, problem = estimate_iteration_s(spec, layout, cut_layers(work, layout.stages))
        if seconds is None:
            refused[layout] = problem
        else:
            rows[layout] = seconds
    known = measured.iteration_s if measured is not None else _own_rows(spec)
    if known:
        ratios = [seconds / rows[layout] for layout, seconds in known.items() if rows.get(layout)]
        scale = median(ratios) if ratios else 1.0
        rows = {layout: seconds * scale for layout, seconds in rows.items()}
        rows.update(known)
        refused = {layout: why for layout, why in refused.items() if layout not in known}
    return Profile(
        name=spec.name,
        mini_batch=spec.training.mini_batch,
        micro_batch=spec.training.micro_batch,
        layer_params=tuple(layer.params for layer in spec.layers),
        layer_work=work,
        iteration_s=rows,
        unit=spec.unit,
        units_per_sample=spec.units_per_sample,
        refused=refused,
    )


def _own_rows(spec: ModelSpec) -> dict[Layout, float]:
    return {Layout(*layout): seconds for layout, seconds in spec.iteration_s.items()}


def all_layouts(spec: ModelSpec, max_nodes: int) -> tuple[Layout, ...]:
    """Every layout that the layers and micro-batches allow on up to `max_nodes` nodes."""
    return tuple(
        Layout(pipelines, stages)
        for stages in range(1, min(len(spec.layers), max_nodes) + 1)
        for pipelines in range(1, min(max_nodes // stages, spec.training.micro_batches) + 1)
    )


@lru_cache(maxsize=64)
def _positive(value: float, source: str, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InputError(f"{source}: {key}: must be a number above 0, not {value!r}")
    return float(value)


def measured_profile(spec: ModelSpec, table: Mapping[str, object], source: str) -> Profile:
    """Exactly the rows of a measured table (form: `templates/profiles/artifact.json`); times in ms.

    Raises:
        InputError: the table has no such model, or a row that cannot be.
    """
    models = table.get("models")
    if not isinstance(models, Mapping) or spec.artifact not in models:
        known = ", ".join(sorted(models)) if isinstance(models, Mapping) else "none"
        raise InputError(f"{source}: no profile {spec.artifact!r} for {spec.name}; it has {known}")
    entry = models[spec.artifact]
    where = f"models.{spec.artifact}"
    rows: dict[Layout, float] = {}
    for number, row in enumerate(_need(entry, "iteration_ms", source, where)):
        key = f"{where}.iteration_ms[{number}]"
        if not isinstance(row, list) or len(row) != 3:
            raise InputError(f"{source}: {key}: must be [pipelines, stages, milliseconds], not {row!r}")
        pipelines, stages = (int(_positive(value, source, key)) for value in row[:2])
        rows[Layout(pipelines, stages)] = _positive(row[2], source, key) / 1000
    params: list[int] = []
    for number, group in enumerate(_need(entry, "layers", source, where)):
        key = f"{where}.layers[{number}]"
        count = int(_positive(_need(group, "count", source, key), source, f"{key}.count"))
        params += [int(_positive(_need(group, "params", source, key), source, f"{key}.params"))] * count
    deepest = max((layout.stages for layout in rows), default=1)
    if deepest > len(params):
        raise InputError(f"{source}: {where}: a row has {deepest} stages, but there are {len(params)} layers")
    return Profile(
        name=spec.name,
        mini_batch=int(_positive(_need(entry, "mini_batch", source, where), source, f"{where}.mini_batch")),
        micro_batch=int(
            _positive(_need(entry, "micro_batch", source, where), source, f"{where}.micro_batch")
        ),
        layer_params=tuple(params),
        layer_work=tuple(float(count) for count in params),
        iteration_s=rows,
        unit=spec.unit,
        units_per_sample=spec.units_per_sample,
        state_bytes_per_param=int(
            _positive(
                _need(entry, "state_bytes_per_param", source, where), source, f"{where}.state_bytes_per_param"
            )
        ),
    )


def _need(table: object, key: str, source: str, where: str) -> Any:
    if not isinstance(table, Mapping) or key not in table:
        raise InputError(f"{source}: {where}.{key}: is missing")
    return table[key]
