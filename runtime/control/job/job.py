"""A job as data: what was asked for, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from runtime.planning.types import Layout, MigrationKind


@dataclass(frozen=True)
class LaunchRequest:
    """Everything that `parcae launch` was told, checked.

    `model` is a shipped template's name or the path of the user's own. `nodes` is how many are wanted,
    `gpus_per_node` how many GPUs, and so workers, each of them has (None: what the cloud's machines have);
    `trace` decides how many there are and names them, `speed` is its seconds per wall second, and `notice_s`
    its seconds between a warning and the kill. `corpus` are the local files to train on, `objects` those
    in an object store (rows of `data_set.DataFile`); neither: the standard library's sources.
    `forecaster` None: the planner's default. `home` is where the journal and the job's files go. `template`
    is the content of the model's file, `cost_table` the measured costs of migrations,
    `fleet` the settings of the cloud (see templates/fleets). `max_hours` (of the cloud's time) and
    `max_usd_per_hour` end the job as the budget does.
    `backup` says how the anchor's copy is kept (see `backup_orders.MODES`).
    `checkpoint` is the folder or URL for durable checkpoints, one for every `checkpoint_every` steps (0, for
    the policy `checkpoint` alone: by Young's rule), of which the last `checkpoint_keep` are kept, and
    `start_from` one to continue. `faults` are scripted deaths, for tests; without `copy_ahead` all state is
    sent at the switch, for benchmarks, and unless `exact` gradients are summed in fp32, as on
    GPUs, for tests. `anchor` is `here` or `cloud`: where launcher and backup are
    to run; the launcher there is told `here`, what its machine costs in an hour, and since when (in Unix s).
    """

    name: str
    model: str
    home: Path
    cloud: str = "local"
    nodes: int = 8
    gpus_per_node: int | None = None
    trace: Path | None = None
    speed: float = 1.0
    steps: int = 200
    policy: str = "parcae"
    forecaster: str | None = None
    seed: int = 0
    notice_s: float = 120.0
    interval_s: float = 60.0
    lookahead: int = 12
    history: int = 12
    backup: str = "state"
    backup_every: int = 10
    budget_usd: float | None = None
    corpus: tuple[Path, ...] = ()
    objects: tuple[Mapping[str, Any], ...] = ()
    checkpoint: str | None = None
    checkpoint_every: int = 100
    checkpoint_keep: int = 3
    copy_ahead: bool = True
    exact: bool = True
    start_from: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    cost_table: Mapping[str, Any] = field(default_factory=dict)
    faults: tuple[Mapping[str, Any], ...] = ()
    fleet: Mapping[str, Any] = field(default_factory=dict)
    max_hours: float | None = None
    max_usd_per_hour: float | None = None
    anchor: str = "here"
    anchor_usd_per_hour: float = 0.0
    anchor_since_s: float = 0.0

    @property
    def gpus(self) -> int:
        """The GPUs of a node, once the cloud has said what its machines have."""
        return self.gpus_per_node or 1

    def as_json(self) -> dict[str, Any]:
        """The request as JSON values: the journal keeps it as the job's specification."""
        return asdict(self) | {
            "home": str(self.home),
            "trace": None if self.trace is None else str(self.trace),
            "corpus": [str(path) for path in self.corpus],
            "objects": [dict(row) for row in self.objects],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LaunchRequest:
        """The request of a job in the journal. Keys that another version wrote are left out."""
        known = {item.name for item in fields(cls)}
        found = {key: value for key, value in values.items() if key in known}
        for key in ("home", "trace"):
            found[key] = None if found.get(key) is None else Path(found[key])
        found["corpus"] = tuple(Path(path) for path in found.get("corpus", ()))
        found["objects"] = tuple(found.get("objects", ()))
        found["faults"] = ()  # scripted deaths are for the first attempt
        return cls(**found)


@dataclass(frozen=True)
class Transfer:
    """The state that moved for a migration: `bytes_ahead` while training went on, the rest at the switch.

    `copy_s` and `fetch_s` are how long the slowest receiver took for the one and for the other; `copy_s` is 0
    where the copy was not whole by the switch.
    """

    bytes_ahead: int = 0
    copy_s: float = 0.0
    bytes_at_switch: int = 0
    fetch_s: float = 0.0

    @property
    def bytes_moved(self) -> int:
        """All of it."""
        return self.bytes_ahead + self.bytes_at_switch


@dataclass(frozen=True)
class MigrationRecord:
    """A change of assignment that was carried out.

    `step` is the first step committed in the new generation; `pause_s` the time between the last commit
    before and the first after, less one ordinary step. `before` is None for the first assignment.
    """

    generation: int
    step: int
    kind: MigrationKind
    noticed: bool
    pause_s: float
    nodes_lost: tuple[str, ...]
    nodes_joined: tuple[str, ...]
    transfer: Transfer
    before: Layout | None
    after: Layout

    def as_json(self) -> dict[str, Any]:
        """The record under the names of the command line's contract."""
        return {
            "generation": self.generation,
            "step": self.step,
            "kind": str(self.kind),
            "noticed": self.noticed,
            "pause_s": self.pause_s,
            "nodes_lost": list(self.nodes_lost),
            "nodes_joined": list(self.nodes_joined),
            "bytes_moved": self.transfer.bytes_moved,
            "bytes_ahead": self.transfer.bytes_ahead,
            "copy_s": self.transfer.copy_s,
            "fetch_s": self.transfer.fetch_s,
            "from": None if self.before is None else str(self.before),
            "to": str(self.after),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MigrationRecord:
        """The record again."""
        found = dict(values)
        before, after = found.pop("from"), found.pop("to")
        moved = found.pop("bytes_moved")
        ahead = found.pop("bytes_ahead")
        found["transfer"] = Transfer(ahead, found.pop("copy_s"), moved - ahead, found.pop("fetch_s"))
        found["kind"] = MigrationKind(found["kind"])
        for key in ("nodes_lost", "nodes_joined"):
            found[key] = tuple(found[key])
        return cls(**found, before=before and Layout.parse(before), after=Layout.parse(after))


@dataclass(frozen=True)
class JobResult:
    """How a job ended. `state` is `done`, `failed` or `interrupted`; `why` explains the last two.

    `weights_sha256` and `final_loss` are None where no step was committed, `eval_loss` (the newest held-out
    loss) where none was evaluated. `steps_redone` were committed, undone by a rollback and trained again;
    `time_lost_s` is the sum of all pauses and of the time that those steps took.
    """

    job: str
    state: str
    steps: int
    samples: int
    samples_lost: int
    samples_repeated: int
    final_loss: float | None
    weights_sha256: str | None
    wall_s: float
    usd: float
    migrations: tuple[MigrationRecord, ...] = ()
    usd_on_demand: float = 0.0
    why: str = ""
    eval_loss: float | None = None
    steps_redone: int = 0
    time_lost_s: float = 0.0
    backup: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The one object that `parcae launch --json` prints."""
        return asdict(self) | {"migrations": [record.as_json() for record in self.migrations]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> JobResult:
        """The result again."""
        migrations = tuple(MigrationRecord.from_json(row) for row in values["migrations"])
        return cls(**{**values, "migrations": migrations})
