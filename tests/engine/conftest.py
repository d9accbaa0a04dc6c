"""What the engine's tests compare with."""

from __future__ import annotations

import pytest

from tests.engine.driver import Crew

STEPS = 6


@pytest.fixture(scope="session")
def alone() -> tuple[list[float], dict[int, str]]:
    """Losses and digests of one process that trains by itself for STEPS steps."""
    crew = Crew(["solo"])
    try:
        crew.prepare(1, 1, 1, ["solo"])
        crew.prepared(["solo"])
        crew.from_seed(1, 1, ["solo"])
        return crew.train(1, 0, STEPS, ["solo"]), crew.digests(["solo"])
    finally:
        crew.close()
