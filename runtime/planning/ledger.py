"""Which samples a step trains on, and which are committed: pure functions of seed, step and index."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b

FEISTEL_ROUNDS = 6


def permuted(position: int, count: int, seed: int, epoch: int) -> int:
    """Where `position` lands in the shuffle of `count` samples for this seed and epoch: a bijection.

    A Feistel network over the next even power of two, walked until it lands inside (on average under four
    rounds of walking), so that any sample of any epoch is found at once, on any machine, without memory.

    Raises:
        ValueError: `position` is not in 0..count-1.
    """
    if not 0 <= position < count:
        raise ValueError(f"position {position} is not among {count} samples")
    half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
    mask = (1 << half_bits) - 1
    keys = _round_keys(seed, epoch)
    value = position
    while True:
        left, right = value >> half_bits, value & mask
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & mask)
        value = (left << half_bits) | right
        if value < count:
            return value


@lru_cache(maxsize=256)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    digest = blake2b(f"parcae {seed} {epoch}".encode(), digest_size=8 * FEISTEL_ROUNDS).digest()
    return tuple(int.from_bytes(digest[8 * n : 8 * n + 8], "little") for n in range(FEISTEL_ROUNDS))


def _mix(value: int, key: int) -> int:
    """A 64-bit finaliser (SplitMix64): every bit of the input moves every bit of the output."""
    value = (value + key) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return value ^ (value >> 31)


@dataclass(frozen=True)
class SampleOrder:
    """The order in which a run sees its data set: shuffled anew each epoch, the same at any layout.

    The n-th sample of the run, n = step x mini_batch + index, is position n mod num_samples of epoch n //
    num_samples.
    """

    num_samples: int
    mini_batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.mini_batch < 1:
            raise ValueError(f"{self.num_samples} samples in batches of {self.mini_batch}: both start at 1")

    def sample(self, step: int, index: int) -> int:
        """The sample id at `index` of mini-batch `step`."""
        epoch, position = divmod(step * self.mini_batch + index, self.num_samples)
        return permuted(position, self.num_samples, self.seed, epoch)

    def samples(self, step: int, indices: Iterable[int] | None = None) -> tuple[int, ...]:
        """The sample ids of mini-batch `step`, all of them or those at `indices`."""
        return tuple(
            self.sample(step, index) for index in (range(self.mini_batch) if indices is None else indices)
        )

    def epoch(self, step: int) -> int:
        """The epoch in which mini-batch `step` begins."""
        return step * self.mini_batch // self.num_samples


@dataclass(frozen=True)
class Ledger:
    """Which steps are committed. Steps 0..committed_steps-1 are, each once; nothing else is.

    `steps_done_again` counts committed steps that a rollback took back and that had to be trained again; they
    are in the weights once all the same. `attempts_abandoned` counts steps that were given up before their
    commit.
    """

    mini_batch: int
    committed_steps: int = 0
    steps_done_again: int = 0
    attempts_abandoned: int = 0
    lost: int = 0
    repeated: int = 0

    @property
    def samples(self) -> int:
        """Samples that are in the weights."""
        return self.committed_steps * self.mini_batch

    @property
    def samples_lost(self) -> int:
        """Samples that were skipped: not in the weights though later ones are. Stays 0."""
        return self.lost

    @property
    def samples_repeated(self) -> int:
        """Samples that are in the weights more often than their epoch says. Stays 0."""
        return self.repeated

    def commit(self, step: int) -> Ledger:
        """The ledger after `step` was committed.

        A step that comes too early loses those before it, one that comes again repeats its samples: neither
        should ever happen, and both are counted rather than hidden.
        """
        expected = self.committed_steps
        if step < expected:
            return replace(self, repeated=self.repeated + self.mini_batch)
        return replace(self, committed_steps=step + 1, lost=self.lost + (step - expected) * self.mini_batch)

    def abandon(self) -> Ledger:
        """The ledger after the step in flight was given up: it will be done again whole."""
        return replace(self, attempts_abandoned=self.attempts_abandoned + 1)

    def rollback(self, step: int) -> Ledger:
        """The ledger after the weights went back to the backup's: steps from `step` on are no longer in them.

        Raises:
            ValueError: `step` was never committed.
        """
        if not 0 <= step <= self.committed_steps:
            raise ValueError(f"no rollback to step {step}: {self.committed_steps} steps are committed")
        return replace(
            self, committed_steps=step, steps_done_again=self.steps_done_again + self.committed_steps - step
        )
