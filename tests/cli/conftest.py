"""A home of its own for every test, and the command, in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from parcae_cli.main import main
from runtime.control.job.journal import Journal

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PARCAE_HOME that does not exist yet, with the working folder elsewhere."""
    folder = tmp_path / "home"
    working = tmp_path / "working"
    working.mkdir()
    monkeypatch.setenv("PARCAE_HOME", str(folder))
    monkeypatch.delenv("PARCAE_DEBUG", raising=False)
    monkeypatch.chdir(working)
    return folder


@pytest.fixture
def journal(home: Path) -> Iterator[Journal]:
    """The journal of that home, open."""
    opened = Journal(home)
    yield opened
    opened.close()


@pytest.fixture
def parcae(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Runs a command in this process."""

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        written = capsys.readouterr()
        return Done(code, written.out, written.err)

    return run


@pytest.fixture
def parcae_process(home: Path) -> Callable[..., Done]:
    """Runs a command as a user does, in a process of its own."""

    def run(*arguments: object, cwd: Path | None = None, **environment: str) -> Done:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "parcae_cli.main", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=cwd,
            env=os.environ | environment,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run
