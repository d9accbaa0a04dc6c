"""What data must be like to be trained on, by name, size and header: files here, and objects in stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

TOKEN_FILES = (".bin", ".npy")


class CorpusError(Exception):
    """The data cannot be read, is too short, or does not fit the vocabulary."""


def unit_of(names: Sequence[str]) -> str:
    """What files of these names hold: tokens, or bytes of text.

    Raises:
        CorpusError: some hold the one and some the other.
    """
    kinds = {PurePath(name).suffix in TOKEN_FILES for name in names}
    if len(kinds) > 1:
        raise CorpusError(f"files of tokens ({', '.join(TOKEN_FILES)}) and of text do not mix")
    return "tokens" if kinds == {True} else "bytes of text"


def bin_tokens(named: str, size_bytes: int, vocab: int) -> tuple[int, int]:
    """The tokens of a .bin file, and the bytes of each. `named` is how the user knows the file.

    Raises:
        CorpusError: it is not made of whole tokens.
    """
    width = 2 if vocab <= 1 << 16 else 4
    if size_bytes % width:
        raise CorpusError(
            f"{named}: {size_bytes:,} bytes are not whole tokens of {width} bytes (vocab is {vocab:,})"
        )
    return size_bytes // width, width


def check_array(named: str, kind: str, shape: tuple[int, ...], letter: str) -> None:
    """Whether a .npy file holds tokens: `kind` is its dtype in words, `letter` NumPy's for that kind.

    Raises:
        CorpusError: it does not.
    """
    if len(shape) != 1 or letter not in "iu":
        raise CorpusError(f"{named}: must hold integers in one dimension, not {kind} of shape {shape}")


def samples_of(tokens: int, unit: str, seq: int) -> int:
    """How many samples of `seq` + 1 tokens, which overlap by one, there are.

    Raises:
        CorpusError: not one.
    """
    samples = (tokens - 1) // seq
    if samples < 1:
        raise CorpusError(f"{tokens} {unit} are fewer than one sample of {seq + 1}")
    return samples


def trained_samples(samples: int, held_out: int) -> int:
    """How many samples an epoch has when the last `held_out` are kept from training.

    Raises:
        CorpusError: none is left.
    """
    if samples <= held_out:
        raise CorpusError(
            f"{samples} samples of data, and eval_samples holds {held_out} of them out; give more"
        )
    return samples - held_out
