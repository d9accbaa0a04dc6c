"""Runs that others must equal, made once for all files."""

from __future__ import annotations

import pytest

from tests.end_to_end.harness import LONG_STEPS, STEPS, Finished, train


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run that every other one must equal: four nodes, no trace, nothing happens."""
    return train(tmp_path_factory.mktemp("undisturbed"), "base", nodes=4, steps=STEPS)


@pytest.fixture(scope="session")
def undisturbed_long(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The same, for longer."""
    return train(tmp_path_factory.mktemp("undisturbed"), "base-long", nodes=4, steps=LONG_STEPS)
