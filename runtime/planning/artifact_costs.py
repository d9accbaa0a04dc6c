"""The cost model of the paper's artifact, from its constants (`templates/profiles/artifact.json`)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.planning.costs import NO_COST, Change, Cost
from runtime.planning.errors import InputError
from runtime.planning.profile import Profile
from runtime.planning.types import Layout, MigrationKind

ADD, REMOVE = "add", "remove"


@dataclass(frozen=True, eq=False)
class ArtifactCosts:
    """Every change stops training: groups are rebuilt, processes set up, the model built, state copied.

    Two things are charged more honestly than the artifact does: a re-cut pays for the node that misses most
    (the artifact: only the last stage's), and a change that comes during a stall starts over (the artifact
    forgets it).
    """

    rendezvous_s: float
    checkpoint_s: float
    process_init_s: float
    extra_on_add_s: float
    model_build_s: Mapping[int, float]
    group_rule: Mapping[str, Any]
    transfer_s_by_bytes: tuple[tuple[float, float], ...]
    name: str = "artifact"

    def transfer_s(self, volume_bytes: float) -> float:
        """Seconds to send so many bytes to a peer: linear between measured rows, proportional beyond."""
        rows = self.transfer_s_by_bytes
        if volume_bytes <= 0:
            return 0.0
        if volume_bytes >= rows[-1][0]:
            return rows[-1][1] * volume_bytes / rows[-1][0]
        index = bisect_right(rows, (volume_bytes, float("inf")))
        if index == 0:
            return rows[0][1]
        (low, low_s), (high, high_s) = rows[index - 1], rows[index]
        return low_s + (high_s - low_s) * (volume_bytes - low) / (high - low)

    def groups_s(self, layout: Layout, change: str) -> float:
        """Seconds to build the communication groups of `layout`; `change` is ADD or REMOVE."""
        rule, pipelines, stages = self.group_rule, layout.pipelines, layout.stages
        base_s = float(rule["base_ms"]) / 1000
        if rule["rule"] == "by_pipelines":
            for up_to, each_ms in rule["up_to_ms"]:
                if up_to is None or pipelines <= up_to:
                    return base_s + float(each_ms) / 1000 * (rule["times_on_add"] if change == ADD else 1.0)
        groups = (
            layout.positions if rule["rule"] == "per_position" else pipelines + stages + 1 + layout.positions
        )
        return base_s + groups * float(rule["each_ms_on_add" if change == ADD else "each_ms"]) / 1000

    def restart_s(self, layout: Layout, change: str) -> float:
        """Seconds from new groups to a model that is built, without any state."""
        seconds = self.groups_s(layout, change) + self.process_init_s + self._build_s(layout.stages)
        return seconds + (self.rendezvous_s + self.extra_on_add_s if change == ADD else 0.0)

    def _build_s(self, stages: int) -> float:
        known = self.model_build_s
        if stages in known:
            return known[stages]
        nearest = min(known, key=lambda other: (abs(other - stages), other))
        return known[nearest]

    def cost(self, profile: Profile, change: Change) -> Cost:
        """See `CostModel`."""
        after, before = change.after, change.before
        alive = (before.positions if before else 0) - change.lost_positions
        grows = ADD if after.positions > alive else REMOVE
        if change.kind is MigrationKind.START:
            return Cost(self.restart_s(after, ADD))
        if change.kind is MigrationKind.INTRA_STAGE:
            if before == after and not change.lost_positions and not change.fresh_nodes:
                return NO_COST
            return Cost(self.groups_s(after, REMOVE) + self.process_init_s)
        restart_s = self.restart_s(after, grows)
        same_cut = before is not None and before.stages == after.stages
        copy_s = max(self.transfer_s(change.missing_bytes), self.transfer_s(change.wiped_bytes))
        if not same_cut and after.pipelines > 1:
            copy_s += self.transfer_s(max(profile.stage_bytes(after.stages)))
        return Cost(restart_s + copy_s)

    def checkpoint_write_s(self, profile: Profile, layout: Layout) -> float:
        """See `CostModel`: the replicas of a stage share its writing, at the speed of a peer copy."""
        return self.transfer_s(max(profile.stage_bytes(layout.stages)) / layout.pipelines)

    def checkpoint_restart_s(self, profile: Profile, layout: Layout, added: bool) -> float:
        """See `CostModel`.

        The artifact loads the stages one after another; real systems load them side by side: so here.
        """
        load_s = self.transfer_s(max(profile.stage_bytes(layout.stages)))
        return self.restart_s(layout, ADD if added else REMOVE) + self.checkpoint_s + load_s


def artifact_costs(table: Mapping[str, Any], model: str | None, source: str) -> ArtifactCosts:
    """The cost model for one model of the artifact's table.

    Raises:
        InputError: the model or a constant is missing, or a time is negative.
    """

    def number(holder: Mapping[str, Any], key: str, where: str) -> float:
        value = holder.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise InputError(f"{source}: {where}{key}: must be a number of milliseconds, not {value!r}")
        return float(value) / 1000

    models = table.get("models")
    if not isinstance(models, Mapping) or model not in models:
        raise InputError(f"{source}: no costs for model {model!r}")
    entry = models[model]
    where = f"models.{model}."
    build = entry.get("model_build_ms_by_stages")
    if not isinstance(build, Mapping) or not build:
        raise InputError(f"{source}: {where}model_build_ms_by_stages: is missing")
    rows = table.get("transfer_ms_by_bytes")
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{source}: transfer_ms_by_bytes: is missing")
    rule = entry.get("group_rebuild")
    if not isinstance(rule, Mapping) or rule.get("rule") not in ("per_group", "per_position", "by_pipelines"):
        raise InputError(
            f"{source}: {where}group_rebuild.rule: must be per_group, per_position or by_pipelines"
        )
    return ArtifactCosts(
        rendezvous_s=number(table, "rendezvous_ms", ""),
        checkpoint_s=number(table, "checkpoint_ms", ""),
        process_init_s=number(entry, "process_init_ms", where),
        extra_on_add_s=number(entry, "extra_ms_on_add", where),
        model_build_s={int(stages): number(build, stages, where) for stages in build},
        group_rule=rule,
        transfer_s_by_bytes=tuple((float(size), float(ms) / 1000) for size, ms in rows),
    )
