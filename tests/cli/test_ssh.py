"""`parcae ssh` reaches nodes by what the launcher wrote down, with the system's own ssh."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.local.provider import LocalProvider
from cloud.local.schedule import Schedule
from cloud.types import Instance, InstanceState, OwnSshTarget, Pool
from parcae_cli.commands.ssh import go
from runtime.control.fleet.doors import FOLDER, read_door, write_door
from runtime.control.job.journal import JobState, Journal
from tests.cli.conftest import Done

Run = Callable[..., Done]


def add_node(journal: Journal, name: str, target: OwnSshTarget | None) -> Instance:
    """A node of job `mine`; with a target it has joined."""
    pool = Pool("here", "process", 1, 1.0, 2.0)
    instance = Instance(f"id-{name}", name, "mine", "token", pool, InstanceState.RUNNING, 1.0)
    journal.put_instance("mine", instance)
    if target is not None:
        write_door(journal.job_folder("mine") / FOLDER, instance, target)
    return instance


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The arguments that a stand-in for `ssh` got last; it ends with 7."""
    folder = tmp_path / "bin"
    folder.mkdir()
    words = tmp_path / "words"
    (folder / "ssh").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{words}\nexit 7\n')
    (folder / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return lambda: words.read_text().splitlines()


def test_a_command_runs_on_the_node_that_is_named(
    parcae: Run, journal: Journal, told: Callable[[], list[str]]
) -> None:
    """ssh gets the user's configuration and the words behind `--`, options too; its exit code is ours."""
    journal.create_job("mine", {"cloud": "hosts"}, os.getpid())
    add_node(journal, "a", OwnSshTarget("host-a", 2022, "me", "/my/config"))
    add_node(journal, "b", OwnSshTarget("host-b"))
    assert parcae("ssh", "mine", "a", "--", "ls", "-l", "my file").code == 7
    assert told() == ["-F", "/my/config", "-p", "2022", "-l", "me", "host-a", "ls -l 'my file'"]
    assert parcae("ssh", "mine", "b", "--", "echo $HOME | wc").code == 7
    assert told() == ["host-b", "echo $HOME | wc"]


def test_without_a_node_the_only_one_is_taken_and_several_are_listed(
    parcae: Run, journal: Journal, told: Callable[[], list[str]]
) -> None:
    """A list ends with 0; a command for nobody in particular is a usage error that names the nodes."""
    journal.create_job("mine", {"cloud": "hosts"}, os.getpid())
    add_node(journal, "a", OwnSshTarget("host-a", 22, "me"))
    assert parcae("ssh", "mine").code == 7
    assert told() == ["-p", "22", "-l", "me", "host-a"]
    add_node(journal, "b", OwnSshTarget("host-b"))
    add_node(journal, "c", None)
    listed = parcae("ssh", "mine")
    assert (listed.code, listed.out) == (0, "a  me@host-a:22\nb  host-b\nc  booting\n")
    found = json.loads(parcae("ssh", "mine", "--json").out)
    assert [node["name"] for node in found["nodes"]] == ["a", "b"] and found["booting"] == ["c"]
    for words, said in ((["--", "ls"], "say which"), (["z"], "no node 'z'"), (["c"], "has not joined yet")):
        wrong = parcae("ssh", "mine", *words)
        assert wrong.code == 2 and said in wrong.err and "There are: a, b" in wrong.err


def test_a_job_that_does_not_run_has_no_nodes(parcae: Run, journal: Journal) -> None:
    """What to do instead depends on whether it has ended or its launcher has died."""
    assert "no job named 'mine'" in parcae("ssh", "mine").err
    journal.create_job("mine", {}, 2**22 + 1)
    killed = parcae("ssh", "mine", "a")
    assert killed.code == 2 and "parcae resume mine" in killed.err
    journal.set_job_state("mine", JobState.DONE)
    ended = parcae("ssh", "mine", "a")
    assert ended.code == 2 and "parcae logs mine" in ended.err


def test_a_door_is_good_for_its_own_instance_and_eyes(journal: Journal) -> None:
    """Another instance of that name is not reached by it, and nobody else reads it."""
    journal.create_job("mine", {}, os.getpid())
    target = OwnSshTarget("host-a")
    one = add_node(journal, "a", target)
    folder = journal.job_folder("mine") / FOLDER
    assert read_door(folder, one) == target
    assert (folder / "a.json").stat().st_mode & 0o077 == 0
    other = Instance("id-2", "a", "mine", "t", one.pool, InstanceState.RUNNING, 2.0)
    assert read_door(folder, other) is None


@pytest.mark.skipif(shutil.which("ssh") is None, reason="there is no ssh on this machine")
def test_the_systems_ssh_reaches_a_local_node_and_no_other_machine(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the pinned key a command's output and exit code come back; with another host key nothing does."""

    async def scene() -> None:
        provider = LocalProvider("job", tmp_path / "root", Schedule.constant(2), zygote=False)
        await provider.start()
        try:
            one, other = (await provider.request(2, "token")).instances
            write_door(tmp_path, one, provider.ssh_target(one))
            target, wrong = read_door(tmp_path, one), provider.ssh_target(other)
            assert target is not None
            command = ["echo out; exec 2>&-; echo on; exit 9"]
            assert await asyncio.to_thread(go, one.name, target, command, True) == 9
            assert capfd.readouterr().out == "out\non\n"
            forged = replace(wrong, host=target.host, port=target.port)
            assert await asyncio.to_thread(go, one.name, forged, ["echo out"], True) == 255
            assert capfd.readouterr().out == ""
        finally:
            await provider.close()

    asyncio.run(scene())
