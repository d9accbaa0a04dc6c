"""Bytes of text files as training samples: sample i is `seq` + 1 bytes, cut at a fixed place."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

DEFAULT_BYTES = 4 << 20


class CorpusError(Exception):
    """The text cannot be read, or is too short."""


def default_corpus() -> list[str]:
    """The source files of this Python's standard library, in a fixed order, the first 4 MiB of them."""
    library = Path(sysconfig.get_paths()["stdlib"])
    chosen, total = [], 0
    for path in sorted(library.glob("*.py")):
        chosen.append(str(path))
        total += path.stat().st_size
        if total >= DEFAULT_BYTES:
            break
    return chosen


class Corpus:
    """The concatenated bytes of some files, as windows of `seq` + 1 bytes that overlap by one."""

    def __init__(self, paths: Sequence[str], seq: int) -> None:
        """Reads everything into memory.

        Raises:
            CorpusError: a file cannot be read, or all of them together are shorter than one window.
        """
        parts = []
        for path in paths or default_corpus():
            try:
                parts.append(Path(path).read_bytes())
            except OSError as error:
                raise CorpusError(f"{path}: {error.strerror}") from error
        self._bytes = np.frombuffer(b"".join(parts), dtype=np.uint8)
        self._seq = seq
        self.samples = (len(self._bytes) - 1) // seq
        if self.samples < 1:
            raise CorpusError(
                f"{len(self._bytes)} bytes of text are fewer than one sample of {seq + 1} bytes"
            )

    def digest(self) -> str:
        """SHA-256 of the text: two nodes that disagree must not train together."""
        return hashlib.sha256(self._bytes.tobytes()).hexdigest()

    def batch(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, each [len(samples), seq] int64."""
        starts = np.asarray(samples, dtype=np.int64) * self._seq
        windows = self._bytes[starts[:, None] + np.arange(self._seq + 1)]
        tokens = torch.from_numpy(windows.astype(np.int64))
        return tokens[:, :-1], tokens[:, 1:]
