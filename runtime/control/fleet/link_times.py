"""How patient a controller is with its nodes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinkTimes:
    """How patient we are, in seconds.

    An instance that once had all its workers is ended when it has had some of them only for `lame_s`;
    one whose worker has come, for `unready_s` without all of them having got ready.
    """

    beat_s: float = 0.5
    grace_s: float = 3.0
    mute_s: float = 3.0
    boot_s: float = 300.0
    agent_start_s: float = 20.0
    retry_s: float = 0.2
    lease_s: float = 10.0
    poll_s: float = 0.1
    close_s: float = 7.0
    lame_s: float = 180.0
    unready_s: float = 300.0
