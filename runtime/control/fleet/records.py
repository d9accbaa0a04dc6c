"""What a fleet writes down of itself, and what it finds written down by one that was killed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cloud.types import Instance


@dataclass(frozen=True)
class Inheritance:
    """What a killed launcher leaves: instances that may live, and requests whose outcome nobody knows."""

    instances: tuple[Instance, ...]
    tokens: tuple[str, ...]


class FleetJournal(Protocol):
    """The part of the journal that a fleet writes. What must survive a crash is written before the call."""

    def intent(self, token: str, job: str, call: str, count: int) -> None:
        """Something is about to be rented under `token`."""
        ...

    def outcome(self, token: str, text: str) -> None:
        """What came of it."""
        ...

    def put_instance(self, job: str, instance: Instance, pgids: Sequence[int]) -> None:
        """The instance as it is now, with the process groups known on it."""
        ...
