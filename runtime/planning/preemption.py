"""Who is hit when k of N instances go: exact laws, by polynomials instead of sampling.

The instances that go are drawn uniformly without replacement, so the losses per stage (or per pipeline)
follow a multivariate hypergeometric law. Its generating function is a product: one small polynomial in x (a
lost instance) for every stage, and (1 + x) for every spare. The coefficient of x^k over C(N, k) is a
probability; integers all the way, so it is exact until the last division.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

Poly = tuple[int, ...]  # coefficients of x^0, x^1, ..


def need_distribution(nodes: int, pipelines: int, stages: int, losses: int, target: int) -> dict[int, float]:
    """How many nodes must load another stage so that every stage has `target` replicas: value -> probability.

    `losses` of `nodes` instances go, of which pipelines x stages hold positions and the rest are spares.

    Raises:
        ValueError: the layout does not fit, or more go than there are.
    """
    spares = _spares(nodes, pipelines, stages, losses)
    # one stage: losing i of its D replicas, C(D, i) ways, leaves it short of max(0, target - (D - i))
    stage: dict[tuple[int, int], int] = {}
    for lost in range(min(pipelines, losses) + 1):
        key = (lost, max(0, target - (pipelines - lost)))
        stage[key] = stage.get(key, 0) + comb(pipelines, lost)
    whole: dict[tuple[int, int], int] = {(0, 0): 1}
    for _ in range(stages):
        product: dict[tuple[int, int], int] = {}
        for (lost, short), ways in whole.items():
            for (more_lost, more_short), more_ways in stage.items():
                if lost + more_lost <= losses:
                    key = (lost + more_lost, short + more_short)
                    product[key] = product.get(key, 0) + ways * more_ways
        whole = product
    ways_by_need: dict[int, int] = {}
    for (lost, short), ways in whole.items():
        if losses - lost <= spares:
            ways_by_need[short] = ways_by_need.get(short, 0) + ways * comb(spares, losses - lost)
    total = comb(nodes, losses)
    return {need: ways / total for need, ways in sorted(ways_by_need.items()) if ways}


def survivors_at_least(nodes: int, pipelines: int, stages: int, losses: int, target: int) -> float:
    """The probability that every stage keeps at least `target` of its replicas."""
    spares = _spares(nodes, pipelines, stages, losses)
    ways = stage_ways(pipelines, stages, target, losses)
    hit = sum(
        count * comb(spares, losses - lost) for lost, count in enumerate(ways) if losses - lost <= spares
    )
    return hit / comb(nodes, losses)


def no_stage_lost(nodes: int, pipelines: int, stages: int, losses: int) -> float:
    """The probability that every stage keeps a replica: that nothing has to come from the backup."""
    return survivors_at_least(nodes, pipelines, stages, losses, 1)


def intact_pipelines(nodes: int, pipelines: int, stages: int, losses: int) -> dict[int, float]:
    """How many pipelines lose no node, when nobody migrates: value -> probability."""
    spares = _spares(nodes, pipelines, stages, losses)
    hit: Poly = tuple(comb(stages, lost) if lost else 0 for lost in range(min(stages, losses) + 1))
    total = comb(nodes, losses)
    found: dict[int, float] = {}
    for broken in range(pipelines + 1):
        ways = _power(hit, broken, losses)
        count = sum(
            way * comb(spares, losses - lost) for lost, way in enumerate(ways) if 0 <= losses - lost <= spares
        )
        if count:
            found[pipelines - broken] = comb(pipelines, broken) * count / total
    return dict(sorted(found.items()))


@lru_cache(maxsize=65536)
def stage_ways(pipelines: int, stages: int, target: int, losses: int) -> Poly:
    """In how many ways 0..`losses` members can go so that every stage keeps at least `target` replicas."""
    most = max(0, pipelines - target) if target <= pipelines else -1
    if most < 0:
        return (0,) * (losses + 1)
    return _power(tuple(comb(pipelines, lost) for lost in range(min(most, losses) + 1)), stages, losses)


def _power(base: Poly, exponent: int, degree: int) -> Poly:
    """base ** exponent up to x^degree, by squaring."""
    result: Poly = (1,) + (0,) * degree
    while exponent:
        if exponent & 1:
            result = _times(result, base, degree)
        exponent >>= 1
        if exponent:
            base = _times(base, base, degree)
    return result


def _times(left: Poly, right: Poly, degree: int) -> Poly:
    product = [0] * (degree + 1)
    for low, ways in enumerate(left):
        if ways:
            for high, more in enumerate(right[: degree - low + 1]):
                product[low + high] += ways * more
    return tuple(product)


def _spares(nodes: int, pipelines: int, stages: int, losses: int) -> int:
    if pipelines < 1 or stages < 1 or nodes < pipelines * stages:
        raise ValueError(f"{pipelines} x {stages} = {pipelines * stages} nodes needed, {nodes} here")
    if not 0 <= losses <= nodes:
        raise ValueError(f"{losses} of {nodes} nodes cannot go")
    return nodes - pipelines * stages
