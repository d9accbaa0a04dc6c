"""How a job's planner is set up: for the job itself, and to say beforehand what it would do."""

from __future__ import annotations

from dataclasses import replace

from runtime.control.job.job import LaunchRequest
from runtime.planning import controller
from runtime.planning.costs import measured_costs
from runtime.planning.errors import InputError
from runtime.planning.forecasters import forecaster_named
from runtime.planning.model import ModelSpec
from runtime.planning.placement import worker_names
from runtime.planning.prior import PriorRates
from runtime.planning.profile import estimated_profile
from runtime.planning.types import Layout, NodeJoined, Reconfigure


def planner_config(
    request: LaunchRequest,
    spec: ModelSpec,
    wanted: int,
    time_scale: float,
    prior: PriorRates | None = None,
) -> controller.ControllerConfig:
    """`time_scale` is how many seconds of the cloud's time pass in one of the planner's clock.

    `prior` is what the cloud says of its capacity, where it says something.
    """
    return controller.ControllerConfig(
        profile=estimated_profile(spec, wanted * request.gpus),
        costs=measured_costs(request.cost_table, "measured.json", spec.device.link_bytes_per_s),
        policy=request.policy,
        forecaster=forecaster_named(request.forecaster or "default", prior, request.interval_s),
        interval_s=request.interval_s / time_scale,
        lookahead=request.lookahead,
        history=request.history,
        max_nodes=wanted,
        gpus=request.gpus,
        redundant=redundant_layout(spec, wanted) if request.policy == "redundancy" else None,
    )


def redundant_layout(spec: ModelSpec, wanted: int) -> Layout:
    """The depth of redundant pipelines, whose nodes hold two stages each, and how many of them `wanted` make.

    As deep as it must be: the shallowest that fits devices of half the memory. A deeper pipeline would have
    more neighbours to lose at once.

    Raises:
        InputError: not even one pipeline fits.
    """
    half = replace(spec.device, memory_bytes=spec.device.memory_bytes // 2)
    fitting = estimated_profile(replace(spec, device=half), wanted).layouts
    stages = min((layout.stages for layout in fitting if layout.stages > 1), default=None)
    if stages is None:
        raise InputError(
            f"--policy redundancy: a node of {spec.name} holds two stages, and no layout of {wanted} nodes "
            "has room for them; give more --nodes"
        )
    return Layout(min(wanted // stages, spec.training.micro_batches), stages)


def first_plan(config: controller.ControllerConfig) -> tuple[Layout | None, float]:
    """The layout that training would start with if all wanted nodes came, and its liveput in samples/s."""
    joined = [
        NodeJoined(worker)
        for number in range(config.max_nodes)
        for worker in worker_names(f"node{number + 1}", config.gpus)
    ]
    decision = controller.step(config, controller.initial_state(config), joined, 0.0)
    plans = [command.plan for command in decision.commands if isinstance(command, Reconfigure)]
    return (plans[0].layout if plans else None), decision.liveput
