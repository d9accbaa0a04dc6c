"""What a node has to have installed: what the bootstrap installs, and nothing else of ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[3]
_NOT_THERE = (
    "asyncssh", "boto3", "botocore", "cryptography", "matplotlib", "rich", "scipy", "statsmodels", "typer"
)  # fmt: skip


def test_agents_and_workers_need_numpy_and_torch_only() -> None:
    """They import none of what only the launching machine has."""
    code = (
        "import sys\n"
        f"for name in {_NOT_THERE!r}: sys.modules[name] = None\n"
        "import parcae_cli.agent, parcae_cli.worker\n"
        "import runtime.control.node.agent, runtime.control.node.daemon, runtime.control.node.bridge\n"
        "import runtime.engine.worker\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(PROJECT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
