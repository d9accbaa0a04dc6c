"""Text and token files as training samples: sample i is `seq` + 1 tokens, cut at a fixed place.

Files named .bin or .npy hold tokens: .npy any integers in one dimension, .bin bare little-endian numbers of
16 bits, or of 32 where the vocabulary is above 65,536. Of any other file each byte is a token. Large files
are mapped into memory, so only what is trained on is read.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.control.data_rules import (
    CorpusError,
    bin_tokens,
    check_array,
    samples_of,
    trained_samples,
    unit_of,
)

if TYPE_CHECKING:
    import torch

DEFAULT_BYTES = 4 << 20
# Smaller files are read at once: a file that is changed while it is mapped can crash its reader.
_MAPPED_FROM_BYTES = 16 << 20
# Data up to this is read whole before training, to compare it between nodes and to find tokens that are
# too high; of more, evenly spread blocks are.
_EXAMINED_BYTES = 1 << 30
_BLOCK = 1 << 20


def default_corpus() -> list[str]:
    """The source files of this Python's standard library, in a fixed order, the first 4 MiB of them."""
    library = Path(os.__file__).parent  # as `sysconfig` says, which takes 2 ms
    chosen, total = [], 0
    for path in sorted(library.glob("*.py")):
        chosen.append(str(path))
        total += path.stat().st_size
        if total >= DEFAULT_BYTES:
            break
    return chosen


class Corpus:
    """The tokens of some files one after another, as windows of `seq` + 1 tokens that overlap by one."""

    def __init__(self, paths: Sequence[str], seq: int, vocab: int) -> None:
        """Opens the files; the default corpus if there are none.

        Raises:
            CorpusError: a file cannot be read, kinds are mixed, or all of them are shorter than one window.
        """
        self._paths = [Path(path) for path in paths or default_corpus()]
        unit = unit_of([path.name for path in self._paths])
        self._vocab, self._seq = vocab, seq
        self._parts = [_open(path, vocab) for path in self._paths]
        self._ends = list(accumulate(len(part) for part in self._parts))
        self.samples = samples_of(self._ends[-1], unit, seq)

    def trained_samples(self, held_out: int) -> int:
        """How many samples an epoch has when the last `held_out` are kept from training.

        Raises:
            CorpusError: none is left.
        """
        return trained_samples(self.samples, held_out)

    def digest(self) -> str:
        """SHA-256 of the data: two nodes that disagree must not train together. Checks the vocabulary too.

        Above 1 GiB it is that of the size and of evenly spread blocks of 1 MiB.

        Raises:
            CorpusError: a token is not in the vocabulary.
        """
        digest = hashlib.sha256()
        size = sum(part.nbytes for part in self._parts)
        if size > _EXAMINED_BYTES:
            digest.update(str(size).encode())
        stride = max(1, -(-size // _EXAMINED_BYTES))
        for path, part in zip(self._paths, self._parts, strict=True):
            for block in _blocks(part, stride):
                self._check(block, path)
                digest.update(block.data)
        return digest.hexdigest()

    def batch(self, samples: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets, each [len(samples), seq] int64.

        Raises:
            CorpusError: a token is not in the vocabulary.
        """
        import torch

        windows = np.stack([self._window(sample * self._seq) for sample in samples])
        tokens = torch.from_numpy(windows)
        return tokens[:, :-1], tokens[:, 1:]

    def _window(self, start: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        window = np.empty(self._seq + 1, dtype=np.int64)
        filled, index = 0, bisect_right(self._ends, start)
        while filled <= self._seq:
            part = self._parts[index]
            begin = max(0, start - (self._ends[index] - len(part)))
            piece = part[begin : begin + self._seq + 1 - filled]
            self._check(piece, self._paths[index])
            window[filled : filled + len(piece)] = piece
            filled, index = filled + len(piece), index + 1
        return window

    def _check(self, tokens: np.ndarray[Any, Any], path: Path) -> None:
        if tokens.dtype == np.uint8 and self._vocab > np.iinfo(np.uint8).max:
            return  # no byte is too high
        if len(tokens) and (tokens.max() >= self._vocab or tokens.min() < 0):
            bad = int(tokens[(tokens >= self._vocab) | (tokens < 0)][0])
            raise CorpusError(f"{path}: token {bad} is not below the model's vocab, {self._vocab:,}")


def _blocks(part: np.ndarray[Any, Any], stride: int) -> Iterator[np.ndarray[Any, Any]]:
    """Every `stride`-th block of the part."""
    length = max(1, _BLOCK // part.itemsize)
    for start in range(0, len(part), length * stride):
        yield part[start : start + length]


def _open(path: Path, vocab: int) -> np.ndarray[Any, Any]:
    try:
        size = path.stat().st_size
        if path.suffix == ".npy":
            return _open_npy(path, size)
        kind = np.dtype(np.uint8)
        if path.suffix == ".bin":
            kind = np.dtype(f"<u{bin_tokens(str(path), size, vocab)[1]}")
        if size < _MAPPED_FROM_BYTES:
            # Quicker than `np.fromfile`, which counts for a node that joins: text is in many files.
            words = path.read_bytes()
            return np.frombuffer(words, dtype=kind, count=len(words) // kind.itemsize)
        return np.memmap(path, dtype=kind, mode="r")
    except OSError as error:
        raise CorpusError(f"{path}: {error.strerror or error}") from error


def _open_npy(path: Path, size: int) -> np.ndarray[Any, Any]:
    try:
        mode: Any = "r" if size >= _MAPPED_FROM_BYTES else None
        part: np.ndarray[Any, Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise CorpusError(f"{path}: is not a NumPy file: {error}") from error
    check_array(str(path), str(part.dtype), part.shape, part.dtype.kind)
    return part
