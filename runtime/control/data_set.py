"""The files that a job trains on, as launcher, nodes and workers name them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class DataFile:
    """One file: a local one at `path`, known by its SHA-256, or an object at `url`, known by its `etag`.

    `name` is its file name: how it ends says what it holds.
    """

    name: str
    size_bytes: int
    sha256: str = ""
    path: str = ""
    url: str = ""
    etag: str = ""


@dataclass(frozen=True)
class DataSet:
    """Files in the order in which they are trained on."""

    files: tuple[DataFile, ...]

    @classmethod
    def of_paths(cls, paths: Sequence[Path]) -> DataSet:
        """Local files, which are read whole for their digests.

        Raises:
            OSError: one cannot be read.
        """
        return cls(
            tuple(
                DataFile(path.name, path.stat().st_size, sha256=file_digest(path), path=str(path))
                for path in paths
            )
        )

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def digest(self) -> str:
        """Equal for equal files in equal order, whatever their folder is called on this machine."""
        told = [{**asdict(file), "path": ""} for file in self.files]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]

    @property
    def node_paths(self) -> list[str]:
        """Where the files are on a node, below its folder for data."""
        return [f"{self.digest}/{name_on_node(index, file.name)}" for index, file in enumerate(self.files)]

    def as_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"files": [asdict(file) for file in self.files]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DataSet:
        """See `as_json`."""
        return cls(tuple(DataFile(**row) for row in values["files"]))


def name_on_node(index: int, name: str) -> str:
    """Files of one name, from several folders, stay apart."""
    return f"{index:05d}-{name}"


def file_digest(path: Path, read: Callable[[int], None] = lambda size: None) -> str:
    """The SHA-256 of a file's content, in hexadecimal. `read` is told of the bytes as they are read.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            read(len(block))
    return digest.hexdigest()


def data_folder() -> Path:
    """Where this node keeps data: what launchers send, each set in a folder of its own."""
    told = os.environ.get("PARCAE_DATA", "")
    return Path(told) if told else Path.home() / ".cache/parcae/data"


def found_on_node(path: str) -> str:
    """Where a worker finds a file: as it is named, or below the folder for data."""
    return path if Path(path).is_absolute() else str(data_folder() / path)
