"""Runs that others must equal, made once for all files and for all of xdist's workers."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from filelock import FileLock

from tests.end_to_end.harness import LONG_STEPS, STEPS, Finished, train


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that the workers of this session have in common."""
    own = tmp_path_factory.getbasetemp()
    return own if worker_id == "master" else own.parent


@pytest.fixture(scope="session")
def undisturbed(shared_folder: Path) -> Finished:
    """The run that every other one must equal: four nodes, no trace, nothing happens."""
    return quiet_run(shared_folder, STEPS)


@pytest.fixture(scope="session")
def undisturbed_long(shared_folder: Path) -> Finished:
    """The same, for longer."""
    return quiet_run(shared_folder, LONG_STEPS)


def quiet_run(shared: Path, steps: int) -> Finished:
    """Whoever needs it first makes it, the others wait for it."""
    home = shared / f"undisturbed-{steps}"
    kept = shared / f"undisturbed-{steps}.pickle"
    with FileLock(f"{home}.lock", timeout=90):
        if not kept.exists():
            home.mkdir(exist_ok=True)
            kept.write_bytes(pickle.dumps(train(home, "base", nodes=4, steps=steps)))
        finished: Finished = pickle.loads(kept.read_bytes())
        return finished
