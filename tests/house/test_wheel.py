"""The wheel, built, installed away from the checkout, and run from the root folder."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path = Path("/"), **environment: str) -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def parcae(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs the installed command, or with `python=True` its interpreter, from `/`."""
    base = tmp_path_factory.mktemp("elsewhere")
    venv = base / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    pip = (sys.executable, "-m", "pip", "--python", venv / "bin/python")
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel)
    # Dependencies are borrowed from the environment of the tests. Its own .pth files, and with them the
    # checkout, do not take part: a folder that a .pth file names is no site folder.
    site = Path(sysconfig.get_path("purelib", vars={"base": str(venv), "platbase": str(venv)}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def call(*arguments: str, python: bool = False) -> str:
        return run(
            venv / "bin" / ("python" if python else "parcae"), *arguments, PARCAE_HOME=str(base / "home")
        )

    return call


def test_the_wheel_holds_the_packages_the_templates_and_the_licence(wheel: Path) -> None:
    """Nothing that runs needs the checkout, and nothing that only tests is in the wheel."""
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in (
        "parcae_cli/main.py",
        "cloud/local/__init__.py",
        "runtime/planning/model.py",
        "parcae_cli/templates/models/gpt-tiny.toml",
        "parcae_cli/templates/traces/demo-8.csv",
        "parcae_cli/templates/profiles/artifact.json",
    ):
        assert wanted in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def test_the_installed_command_uses_its_own_packages(parcae: Callable[..., str]) -> None:
    """The command's modules come from the place of installation, not from the checkout."""
    probe = "import cloud, runtime, parcae_cli; print(cloud.__file__, runtime.__file__, parcae_cli.__file__)"
    assert str(ROOT) not in parcae("-P", "-c", probe, python=True)


def test_the_installed_command_helps_and_lists_models(parcae: Callable[..., str]) -> None:
    """Help and models work from the root folder."""
    assert "launch" in parcae("--help")
    names = {row["name"] for row in json.loads(parcae("models", "--json"))["models"]}
    assert {"gpt-tiny", "gpt3-6b", "bert-large"} <= names


def test_the_installed_command_replays_a_shipped_trace(parcae: Callable[..., str]) -> None:
    """A replay needs nothing but what the wheel brought."""
    probe = "from parcae_cli.catalogue import templates_folder; print(templates_folder())"
    trace = parcae("-P", "-c", probe, python=True).strip() + "/traces/demo-8.csv"
    assert str(ROOT) not in trace
    policies = json.loads(
        parcae("replay", trace, "--model", "gpt3-6b", "--policy", "reactive,ideal", "--json")
    )["policies"]
    assert [policy["name"] for policy in policies] == ["reactive", "ideal"]
