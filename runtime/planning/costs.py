"""What a change of assignment costs: the protocol, and the cost model of our own runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from runtime.planning.errors import InputError
from runtime.planning.profile import Profile
from runtime.planning.types import Layout, MigrationKind


@dataclass(frozen=True)
class Change:
    """A change of assignment, summed up by what its price depends on.

    `lost_positions`: positions whose node is gone. `fresh_nodes`: nodes that take a position and held
    nothing. `missing_bytes`: the most that any one node lacks of its new stage. `wiped_bytes`: layers nobody
    holds any more. `backup_bytes`: all that the backup has to send. `noticed`: no step in flight is lost, and
    training can go on while the change is prepared.
    """

    kind: MigrationKind
    before: Layout | None
    after: Layout
    lost_positions: int = 0
    fresh_nodes: int = 0
    missing_bytes: float = 0.0
    wiped_bytes: float = 0.0
    backup_bytes: float = 0.0
    noticed: bool = False


@dataclass(frozen=True)
class Cost:
    """Seconds: `prepare_s` pass while the old layout trains on, `stall_s` with nothing training.

    `redo_s` of training time is lost besides, because a step in flight (or since the backup) is done again.
    """

    stall_s: float
    prepare_s: float = 0.0
    redo_s: float = 0.0

    @property
    def pause_s(self) -> float:
        """The time without progress."""
        return self.stall_s + self.redo_s

    @property
    def total_s(self) -> float:
        """From the command to the first new progress."""
        return self.prepare_s + self.stall_s + self.redo_s

    def after(self, passed_s: float) -> Cost:
        """What is left of it when so many seconds have passed."""
        prepare_s = max(0.0, self.prepare_s - passed_s)
        passed_s = max(0.0, passed_s - self.prepare_s)
        stall_s = max(0.0, self.stall_s - passed_s)
        passed_s = max(0.0, passed_s - self.stall_s)
        return Cost(stall_s, prepare_s, max(0.0, self.redo_s - passed_s))


NO_COST = Cost(0.0)


class CostModel(Protocol):
    """Prices a change for a model."""

    @property
    def name(self) -> str:
        """`artifact` or `measured`."""
        ...

    def cost(self, profile: Profile, change: Change) -> Cost:
        """What `change` costs a job with this profile."""
        ...

    def checkpoint_write_s(self, profile: Profile, layout: Layout) -> float:
        """Seconds that writing a checkpoint stops training, for a job that works with checkpoints."""
        ...

    def checkpoint_restart_s(self, profile: Profile, layout: Layout, added: bool) -> float:
        """Seconds from giving up one layout to training on another, processes started and state loaded."""
        ...


@dataclass(frozen=True)
class MeasuredCosts:
    """What our own runtime does, its constants measured (see `templates/profiles/measured.json`).

    A change that was noticed is prepared while training goes on: nodes connect, groups are built, state is
    copied; then only a switch at a step boundary remains. One that was not noticed pays for all of it, and
    for the step that was in flight: half of one on average. After a rollback the steps since the last backup
    are done again too.
    """

    groups_s: float
    groups_s_per_position: float
    switch_s: float
    detect_s: float
    link_bytes_per_s: float
    backup_bytes_per_s: float
    process_start_s: float
    backup_every_steps: int = 10
    name: str = "measured"

    def cost(self, profile: Profile, change: Change) -> Cost:
        """See `CostModel`."""
        groups_s = self.groups_s + self.groups_s_per_position * change.after.positions
        copy_s = change.missing_bytes / self.link_bytes_per_s
        if change.kind is MigrationKind.ROLLBACK:
            copy_s = change.backup_bytes / self.backup_bytes_per_s
        if change.noticed and change.kind is not MigrationKind.ROLLBACK:
            return Cost(stall_s=self.switch_s, prepare_s=groups_s + copy_s)
        redo_steps = 0.5 if change.lost_positions else 0.0
        if change.kind is MigrationKind.ROLLBACK:
            redo_steps += self.backup_every_steps / 2
        step_s = profile.iteration_s.get(change.before, 0.0) if change.before else 0.0
        return Cost(stall_s=self.detect_s + groups_s + copy_s + self.switch_s, redo_s=redo_steps * step_s)

    def checkpoint_write_s(self, profile: Profile, layout: Layout) -> float:
        """See `CostModel`: the replicas of a stage share its writing."""
        return max(profile.stage_bytes(layout.stages)) / layout.pipelines / self.link_bytes_per_s

    def checkpoint_restart_s(self, profile: Profile, layout: Layout, added: bool) -> float:
        """See `CostModel`: every node starts a process and loads its stage."""
        groups_s = self.groups_s + self.groups_s_per_position * layout.positions
        load_s = max(profile.stage_bytes(layout.stages)) / self.link_bytes_per_s
        return self.detect_s + self.process_start_s + groups_s + load_s


def notice_lead_s(profile: Profile, costs: CostModel) -> float:
    """How long before its deadline a notice has to be acted on, in seconds, with room to spare.

    Acting earlier wastes the node: it can train until then. Enough for the dearest change that can be
    prepared, half as long again, and two steps.
    """
    longest_s, slowest_s = 0.0, 0.0
    for layout in profile.layouts:
        change = Change(
            kind=MigrationKind.PIPELINE,
            before=layout,
            after=layout,
            lost_positions=0,
            fresh_nodes=1,
            missing_bytes=max(profile.stage_bytes(layout.stages)),
            noticed=True,
        )
        longest_s = max(longest_s, costs.cost(profile, change).total_s)
        slowest_s = max(slowest_s, profile.iteration_s[layout])
    return 1.5 * longest_s + 2 * slowest_s


def measured_costs(table: Mapping[str, object], source: str, link_bytes_per_s: float) -> MeasuredCosts:
    """The cost model of a table of measured constants, in seconds and bytes a second.

    Raises:
        InputError: a constant is missing, negative or not a number.
    """

    def number(key: str) -> float:
        value = table.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            raise InputError(f"{source}: {key}: must be a number of at least 0, not {value!r}")
        return float(value)

    return MeasuredCosts(
        groups_s=number("groups_s"),
        groups_s_per_position=number("groups_s_per_position"),
        switch_s=number("switch_s"),
        detect_s=number("detect_s"),
        link_bytes_per_s=min(link_bytes_per_s, number("transfer_bytes_per_s") or link_bytes_per_s),
        backup_bytes_per_s=min(link_bytes_per_s, number("transfer_bytes_per_s") or link_bytes_per_s),
        process_start_s=number("process_start_s"),
        backup_every_steps=int(number("backup_every_steps")),
    )
