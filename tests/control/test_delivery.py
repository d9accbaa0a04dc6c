"""Data on its way to a node: whole or not at all, from where it broke off, and once only."""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from cloud.local.node import LocalNode
from cloud.types import Instance, InstanceState, Pool
from runtime.control.data_set import DataFile, DataSet, file_digest
from runtime.control.fleet import delivery, ssh
from runtime.control.fleet.delivery import Delivery

PROJECT = Path(__file__).parents[2]
PYTHON = f"env PYTHONPATH={PROJECT} {shlex.quote(sys.executable)}"


@dataclass
class Scene:
    """A node, its folder for data, and what was told."""

    target: Any
    folder: Path
    told: list[tuple[str, str]] = field(default_factory=list)

    async def deliver(self, data: DataSet, **options: Any) -> None:
        """A connection, and all of the data through it."""
        connection = await ssh.connect(self.target)
        try:
            await Delivery(data, lambda *words: self.told.append(words), **options)(connection, PYTHON, "n1")
        finally:
            connection.abort()

    def content(self, data: DataSet) -> list[bytes]:
        """What workers would read."""
        return [(self.folder / path).read_bytes() for path in data.node_paths]


@asynccontextmanager
async def node(root: Path) -> AsyncIterator[Scene]:
    """A machine with an SSH server."""
    pool = Pool("zone", "machine", 1, 0.0, 0.0)
    instance = Instance("i-1", "n1", "", "", pool, InstanceState.RUNNING, time.time())
    key = asyncssh.generate_private_key("ssh-ed25519")
    made = LocalNode(instance, root / "node", root / "node.log", key)
    await made.start({})
    try:
        yield Scene(made.ssh_target(), root / "node/.cache/parcae/data")
    finally:
        made.kill()
        async with asyncio.timeout(5):
            while made._processes:  # noqa: ASYNC110 - the node tells nobody when its last one has ended
                await asyncio.sleep(0.01)


def files(root: Path) -> DataSet:
    """Text, noise, an empty file, and another of the same name, in this order."""
    contents = (b"to be or not to be " * 40_000, os.urandom(700_000), b"", b"short")
    paths = [root / "a/same.txt", root / "noise.txt", root / "empty.txt", root / "b/same.txt"]
    for path, content in zip(paths, contents, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return DataSet.of_paths(paths)


def contents(data: DataSet) -> list[bytes]:
    """As they are on this side."""
    return [Path(file.path).read_bytes() for file in data.files]


def on_another_machine(data: DataSet, root: Path) -> DataSet:
    """The same set, of which the node, which is this very machine, finds no file where it is."""
    hidden = root / "hidden"
    hidden.mkdir()
    moved = []
    for index, file in enumerate(data.files):
        # a launcher-side name that resolves in this process only
        link = hidden / f"{index}-{file.name}"
        Path(file.path).rename(link)
        moved.append(replace(file, path=f"/proc/self/cwd/{os.path.relpath(link)}"))
    return DataSet(tuple(moved))


def test_data_arrives_whole_and_once(tmp_path: Path) -> None:
    """Compressed where it pays; the second time nothing is sent, nor is what lies there already."""

    async def body() -> None:
        data = on_another_machine(files(tmp_path), tmp_path)
        expected = contents(data)
        async with node(tmp_path) as scene:
            await scene.deliver(data)
            assert scene.content(data) == expected
            ((what, how),) = scene.told
            assert what == "n1 has the data"
            sent_mb = float(how.split(" MB, ")[1].split()[0])
            assert 0.7 <= sent_mb < 0.8  # the noise as it is, of the text next to nothing
            await scene.deliver(data)
            assert len(scene.told) == 1
            here = files(tmp_path / "here")
            assert here.digest != data.digest  # other noise
            await scene.deliver(here)
            assert scene.content(here) == contents(here)
            assert len(scene.told) == 1

    asyncio.run(body())


def test_a_broken_delivery_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks after some pieces; the next one brings the rest only, paced by training."""
    monkeypatch.setattr(delivery, "PIECE_BYTES", 1 << 16)

    async def body() -> None:
        data = on_another_machine(files(tmp_path), tmp_path)
        expected = contents(data)
        async with node(tmp_path) as scene:
            connection = await ssh.connect(scene.target)
            pieces = 0

            def training() -> bool:
                nonlocal pieces
                pieces += 1
                if pieces == 18:  # twelve pieces of text, and some of the noise
                    connection.abort()
                return True

            halves = Delivery(data, lambda *words: None, training)
            with pytest.raises(ssh.SshError, match="broke off"):
                await halves(connection, PYTHON, "n1")
            assert not all((scene.folder / path).exists() for path in data.node_paths)
            before = pieces
            pieces = -1000
            await scene.deliver(data, training=training)
            assert pieces + 1000 < 23 + 1 - before + 8  # far from all of it once more
            assert scene.content(data) == expected

    asyncio.run(body())


def test_what_cannot_arrive_is_explained(tmp_path: Path) -> None:
    """A disk that is too small ends the node; a file that was changed is not taken."""

    async def body() -> None:
        async with node(tmp_path) as scene:
            huge = DataSet((DataFile("x.txt", 1 << 60, sha256="0", path="/nowhere/x.txt"),))
            with pytest.raises(ssh.BrokenNodeError, match="GB are free; give nodes a larger disk"):
                await scene.deliver(huge)
            path = tmp_path / "changed.txt"
            path.write_bytes(b"other" * 10)
            wrong = DataSet((DataFile("changed.txt", 50, sha256="0" * 64, path=str(path)),))
            with pytest.raises(ssh.CommandError, match="arrived with another digest"):
                await scene.deliver(wrong)
            assert not list(scene.folder.glob("*/0*"))
            assert [what for what, _ in scene.told] == ["n1 has not got the data"] * 2
            assert file_digest(path) != wrong.files[0].sha256

    asyncio.run(body())
