"""Liveput: the throughput that a layout has left, expected over the losses to come (paper, section 4)."""

from __future__ import annotations

from collections.abc import Mapping

from runtime.planning.preemption import intact_pipelines
from runtime.planning.types import Layout


def liveput(
    nodes: int, layout: Layout, losses: Mapping[int, float], samples_per_s_by_pipelines: Mapping[int, float]
) -> float:
    """E over the losses of the throughput of the pipelines that stay whole, if nobody migrates; in samples/s.

    `losses` maps how many of `nodes` instances go to its probability; `samples_per_s_by_pipelines` has the
    throughput of 1, 2, .. pipelines of this depth (0 pipelines: 0).
    """
    expected = 0.0
    for count, probability in losses.items():
        for whole, chance in intact_pipelines(nodes, layout.pipelines, layout.stages, count).items():
            expected += probability * chance * (samples_per_s_by_pipelines[whole] if whole else 0.0)
    return expected
