"""What a replay needs, read from files: the trace, the profile, the costs, the forecaster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from parcae_cli.catalogue import load_model, templates_folder
from parcae_cli.measured_profile import model_with_profile
from runtime.planning.artifact_costs import artifact_costs
from runtime.planning.costs import CostModel, measured_costs
from runtime.planning.errors import InputError
from runtime.planning.forecasters import forecaster_named
from runtime.planning.model import ModelSpec
from runtime.planning.profile import Profile, estimated_profile, measured_profile
from runtime.planning.trace import Trace
from runtime.planning.trace_formats import parse_trace
from runtime.simulate.setup import ReplaySetup

COSTS = ("artifact", "measured")


def read_trace(path: Path, victims: str = "random", seed: int = 0) -> Trace:
    """The trace in a file, whatever its format.

    Raises:
        InputError: it cannot be read, or is no good trace.
    """
    return parse_trace(_read(path), str(path), victims, seed)


def read_profile(name: str) -> tuple[dict[str, Any], str]:
    """A shipped table of measured figures, and its path for messages."""
    path = templates_folder() / "profiles" / name
    try:
        table = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: is not JSON: {error.msg}") from None
    if not isinstance(table, dict):
        raise InputError(f"{path}: must be a JSON object")
    return table, str(path)


def profile_and_costs(spec: ModelSpec, costs: str, max_nodes: int) -> tuple[Profile, CostModel]:
    """The profile and the cost model of a model, `costs` being one of COSTS.

    Raises:
        InputError: the artifact did not measure this model.
    """
    table, source = read_profile("artifact.json")
    if costs == "artifact":
        if spec.measured is not None:
            raise InputError("--profile: a measured profile has no part in --costs artifact; use measured")
        if spec.artifact is None:
            raise InputError(f"{spec.name}: the artifact did not measure this model; use --costs measured")
        return measured_profile(spec, table, source), artifact_costs(table, spec.artifact, source)
    if costs != "measured":
        raise InputError(f"no costs {costs!r}; there are {', '.join(COSTS)}")
    rows = measured_profile(spec, table, source) if spec.artifact and spec.measured is None else None
    constants, constants_source = read_profile("measured.json")
    return (
        estimated_profile(spec, max_nodes, rows),
        measured_costs(constants, constants_source, spec.device.link_bytes_per_s),
    )


def replay_setup(
    trace: Trace,
    model: str,
    costs: str | None,
    forecaster: str,
    interval_s: float,
    lookahead: int,
    history: int,
    notice_s: float,
    boot_s: float,
    max_nodes: int | None = None,
    gpus: int = 1,
    measured: Path | None = None,
) -> ReplaySetup:
    """A replay's set-up from what the user named. `costs` None: the artifact's where it has the model.

    `measured` is a file of `parcae profile`.
    """
    spec = load_model(model) if measured is None else model_with_profile(model, measured)
    most = max((count for _, count in trace.counts), default=0)
    known = read_profile("artifact.json")[0]["models"]
    if spec.artifact is not None and spec.artifact not in known:
        raise InputError(
            f"{model}: profile.artifact: no profile {spec.artifact!r}; there are {', '.join(sorted(known))}"
        )
    chosen = costs or ("artifact" if spec.artifact and measured is None else "measured")
    profile, cost_model = profile_and_costs(spec, chosen, gpus * max(most, max_nodes or 0))
    baselines, _ = read_profile("baselines.json")
    overhead = baselines["redundancy_overhead"]
    return ReplaySetup(
        trace=trace,
        model=spec,
        profile=profile,
        costs=cost_model,
        forecaster=forecaster_named(forecaster),
        interval_s=interval_s,
        lookahead=lookahead,
        history=history,
        notice_s=notice_s,
        boot_s=boot_s,
        redundancy_overhead=float(overhead.get(spec.unit, overhead["token"])),
        anchor_usd_per_hour=float(baselines["anchor_usd_per_hour"]),
        gpus=gpus,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give a file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not text") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
