"""Nodes that cannot open a connection to the launching machine, and that have no copy of these packages."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from cloud.local.provider import LocalProvider
from runtime.control.fleet.deploy import PushedSources
from runtime.control.job import launch
from runtime.control.providers import ProviderSetup, provider_setup
from tests.end_to_end.harness import processes_of, train

pytestmark = pytest.mark.timeout(120)


def test_the_backup_is_reached_through_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """State goes to the backup and comes back through the nodes' SSH connections, cut ones included.

    Both nodes vanish at one instant, so what the new ones start from can only be the backup's.
    """
    providers: list[LocalProvider] = []

    def far_away(*arguments: Any) -> ProviderSetup:
        setup = provider_setup(*arguments)
        assert isinstance(setup.provider, LocalProvider)
        providers.append(setup.provider)
        return dataclasses.replace(
            setup, anchor_reachable=False, agent_start=PushedSources(sys.executable, {"PARCAE_NEAR": "$HOME"})
        )

    monkeypatch.setattr(launch, "provider_setup", far_away)
    pushed: set[str] = set()

    def interfere(step: int, provider: LocalProvider) -> None:
        if step == 5:
            pushed.update(path.name for path in tmp_path.rglob(".parcae-*"))
            for name in provider.names():
                provider.node(name).cut()
        if step == 25 and not any(name.startswith("new") for name in provider.names()):
            for name in provider.names():
                provider.kill(name)
            for name in ("new1", "new2"):
                provider.appear(name)

    run = train(tmp_path, "far", interfere, trace="0,add,old1\n0,add,old2\n", nodes=2, steps=30)
    assert len(pushed) == 1
    assert run.result.state == "done"
    assert run.kinds == {"rollback"}
    rollback = next(event for event in run.events if event["kind"] == "rollback")
    assert "back to step 20" in rollback["text"] or "back to step 10" in rollback["text"]
    monkeypatch.undo()
    assert run.losses == train(tmp_path, "near", nodes=2, steps=30).losses
    assert processes_of(tmp_path) == []
