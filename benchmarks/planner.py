"""How long one plan takes at 32, 256 and 1,024 instances, and the exact law beside a sampled one.

Run: python benchmarks/planner.py
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median

from parcae_cli.catalogue import load_model
from parcae_cli.replay_inputs import profile_and_costs
from runtime.planning.controller import ControllerConfig
from runtime.planning.forecasters import forecaster_named
from runtime.planning.preemption import need_distribution
from runtime.planning.trace import synthetic_trace
from runtime.simulate.fleet import replay_fleet

DRAWS = 10_000
CASES = ((32, 2, 14, 3, 2), (32, 4, 8, 6, 3), (256, 8, 24, 12, 7))  # nodes, D, P, losses, target
TARGETS_MS = {32: 5.0, 256: 50.0, 1024: 1000.0}


def plan_times(nodes: int, hours: float, model: str = "gpt2-1.5b") -> list[float]:
    """Milliseconds of every decision on a made-up trace of about so many instances, sorted."""
    trace = synthetic_trace("bench", 1, hours, nodes, 0.75 * nodes, 0.5 * nodes, 2.0)
    profile, costs = profile_and_costs(load_model(model), "measured", nodes)
    config = ControllerConfig(profile, costs, "parcae", forecaster_named("default"), max_nodes=nodes)
    return sorted(replay_fleet(config, trace).decision_ms)


def sampled_need(nodes: int, pipelines: int, stages: int, losses: int, target: int, seed: int) -> float:
    """The mean number of nodes that must load another stage, by drawing who goes."""
    draw = random.Random(seed)
    total = 0
    for _ in range(DRAWS):
        alive = [pipelines] * stages
        for node in draw.sample(range(nodes), losses):
            if node < pipelines * stages:
                alive[node % stages] -= 1
        total += sum(max(0, target - count) for count in alive)
    return total / DRAWS


def main() -> None:
    """Print the figures."""
    raw = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=raw).parse_args()
    print("one decision, ms            decisions    median      p95      max   target p95")
    for nodes, hours in ((32, 8.0), (256, 3.0), (1024, 2.0)):
        times = plan_times(nodes, hours)
        p95 = times[int(0.95 * (len(times) - 1))]
        print(
            f"{nodes:6d} instances {len(times):20d} {median(times):9.2f} {p95:8.2f} {times[-1]:8.1f} "
            f"{TARGETS_MS[nodes]:12.0f}"
        )
    print(
        f"\nnodes that must load another stage         exact       ms   {DRAWS:,} draws       ms  difference"
    )
    for nodes, pipelines, stages, losses, target in CASES:
        start = time.perf_counter()
        law = need_distribution(nodes, pipelines, stages, losses, target)
        exact = sum(need * chance for need, chance in law.items())
        exact_ms = (time.perf_counter() - start) * 1000
        start = time.perf_counter()
        sampled = sampled_need(nodes, pipelines, stages, losses, target, seed=1)
        sampled_ms = (time.perf_counter() - start) * 1000
        print(
            f"{pipelines}x{stages} on {nodes}, {losses} lost, target {target:2d}"
            f"{exact:26.4f} {exact_ms:8.2f} {sampled:14.4f} {sampled_ms:8.0f} {sampled - exact:11.4f}"
        )


if __name__ == "__main__":
    main()
