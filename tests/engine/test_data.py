"""Files become samples: every token in its place, every sample once an epoch, bad files refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.control.data_rules import CorpusError
from runtime.engine import data
from runtime.engine.data import Corpus
from runtime.planning.ledger import SampleOrder


def written(folder: Path, name: str, tokens: np.ndarray) -> str:
    """A token file; its kind is that of its name."""
    path = folder / name
    np.save(path, tokens) if name.endswith(".npy") else tokens.tofile(path)
    return str(path)


@pytest.mark.parametrize("mapped_from", [0, 1 << 30])
@pytest.mark.parametrize(
    ("name", "dtype", "vocab"),
    [("a.bin", "<u2", 50_257), ("a.bin", "<u4", 100_000), ("a.npy", "i8", 100_000), ("a.txt", "u1", 256)],
)
def test_every_kind_of_file_gives_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped_from: int, name: str, dtype: str, vocab: int
) -> None:
    """Sample i is tokens i * seq to (i + 1) * seq, targets one further; over the borders of files, too."""
    monkeypatch.setattr(data, "_MAPPED_FROM_BYTES", mapped_from)
    tokens = np.random.default_rng(1).integers(0, vocab, 400).astype(dtype)
    pieces = np.split(tokens, [3, 150, 151])
    paths = [written(tmp_path, f"{k}{name}", piece) for k, piece in enumerate(pieces)]
    corpus = Corpus(paths, 10, vocab)
    assert corpus.samples == 39
    inputs, targets = corpus.batch(range(39))
    assert inputs.flatten().tolist() == tokens[:390].tolist()
    assert targets.flatten().tolist() == tokens[1:391].tolist()
    assert corpus.digest() == Corpus([written(tmp_path, name, tokens)], 10, vocab).digest()


def test_an_empty_file_among_others_changes_nothing(tmp_path: Path) -> None:
    """As a glob may well match one."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "text.txt").write_bytes(bytes(range(50)))
    corpus = Corpus([str(tmp_path / name) for name in ("empty.txt", "text.txt", "empty.txt")], 7, 256)
    assert corpus.batch([2])[1].tolist() == [list(range(15, 22))]


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 5), st.integers(0, 30))
def test_a_run_that_is_continued_sees_every_sample_once_an_epoch(
    samples: int, mini_batch: int, seed: int, stop: int
) -> None:
    """Steps before a stop and steps after it: together every epoch is a permutation, and each another one."""
    order = SampleOrder(samples, mini_batch, seed)
    steps = 2 * samples // mini_batch + 1
    seen = [order.samples(step) for step in range(min(stop, steps))]
    again = SampleOrder(samples, mini_batch, seed)
    seen += [again.samples(step) for step in range(min(stop, steps), steps)]
    flat = [sample for batch in seen for sample in batch]
    assert sorted(flat[:samples]) == list(range(samples))
    assert sorted(flat[samples : 2 * samples]) == list(range(samples))


def large_token(folder: Path) -> list[str]:
    return [written(folder, "a.bin", np.array([1, 2, 700, 3] * 9, dtype="<u2"))]


def odd_size(folder: Path) -> list[str]:
    (folder / "a.bin").write_bytes(b"abc" * 33)
    return [str(folder / "a.bin")]


def two_dimensions(folder: Path) -> list[str]:
    return [written(folder, "a.npy", np.zeros((8, 8), dtype=np.int32))]


def no_integers(folder: Path) -> list[str]:
    return [written(folder, "a.npy", np.zeros(80))]


def not_numpy(folder: Path) -> list[str]:
    (folder / "a.npy").write_text("tokens")
    return [str(folder / "a.npy")]


def mixed(folder: Path) -> list[str]:
    (folder / "b.txt").write_text("text" * 30)
    return [*large_token(folder), str(folder / "b.txt")]


def negative(folder: Path) -> list[str]:
    return [written(folder, "a.npy", np.array([1, -1] * 9))]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (large_token, r"a.bin: token 700 is not below the model's vocab, 256"),
        (odd_size, r"a.bin: 99 bytes are not whole tokens of 2 bytes"),
        (two_dimensions, r"a.npy: must hold integers in one dimension, not int32 of shape \(8, 8\)"),
        (no_integers, r"a.npy: must hold integers in one dimension, not float64"),
        (not_numpy, r"a.npy: is not a NumPy file"),
        (mixed, r"files of tokens \(.bin, .npy\) and of text do not mix"),
        (negative, r"a.npy: token -1 is not below"),
        (lambda folder: [str(folder / "none.bin")], "none.bin: No such file"),
    ],
)
def test_a_bad_file_is_refused_by_name(
    tmp_path: Path, make: Callable[[Path], list[str]], message: str
) -> None:
    """Before training, with what is wrong."""
    with pytest.raises(CorpusError, match=message):
        Corpus(make(tmp_path), 8, 256).digest()


def test_data_that_is_all_held_out_is_refused(tmp_path: Path) -> None:
    """Nothing would be left to train on."""
    (tmp_path / "a.txt").write_bytes(b"x" * 81)
    corpus = Corpus([str(tmp_path / "a.txt")], 8, 256)
    assert (corpus.samples, corpus.trained_samples(9)) == (10, 1)
    with pytest.raises(CorpusError, match="10 samples of data, and eval_samples holds 10 of them out"):
        corpus.trained_samples(10)
    with pytest.raises(CorpusError, match="5 bytes of text are fewer than one sample of 9"):
        (tmp_path / "a.txt").write_bytes(b"x" * 5)
        Corpus([str(tmp_path / "a.txt")], 8, 256)


def test_huge_data_is_compared_by_size_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only some blocks are read, but a file that is longer by a token is another one."""
    monkeypatch.setattr(data, "_EXAMINED_BYTES", 4000)
    monkeypatch.setattr(data, "_BLOCK", 100)
    tokens = np.arange(5000, dtype="<u2")
    one = Corpus([written(tmp_path, "a.bin", tokens)], 8, 5000).digest()
    assert one != Corpus([written(tmp_path, "b.bin", np.append(tokens, tokens[:1]))], 8, 5000).digest()
    assert one == Corpus([written(tmp_path, "c.bin", tokens)], 8, 5000).digest()
