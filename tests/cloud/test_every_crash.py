"""kill -9 of the launcher before and after every call that makes or ends something: nobody is left behind.

A call that is cut off raises what nothing in the provider catches, and so does every later one: all that a
successor has is the disk and the cloud.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloud.types import Instance
from tests.cloud.aws.conftest import ec2, endpoint  # noqa: F401
from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.places import at, living, place_of

WANTED = 2
READS = ("describe_", "get_", "list_")
LEFT_OUT = {
    "local": "its nodes are swept by their process groups: tests/control/test_fleet_faults.py",
    "hosts": "renting one calls nobody; what runs there is swept in tests/end_to_end/test_hosts.py",
}


class Killed(BaseException):
    """The launcher is no more."""


@dataclass
class Hangman:
    """Counts a process's calls to a cloud; with `at` set, the process ends before or after that one."""

    at: int = -1
    after: bool = False
    calls: list[str] = field(default_factory=list)
    dead: bool = False

    def around(self, call: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        """The call, at which we may die."""

        def made(*arguments: Any, **options: Any) -> Any:
            if self.dead:
                raise Killed
            what = name(*arguments)
            if what.startswith(READS):
                return call(*arguments, **options)
            number = len(self.calls)
            self.calls.append(what)
            if number == self.at and not self.after:
                self.dead = True
                raise Killed
            reply = call(*arguments, **options)
            if number == self.at:
                self.dead = True
                raise Killed
            return reply

        return made


@dataclass
class Life:
    """What a launcher's journal holds when it is killed."""

    held: dict[str, Instance] = field(default_factory=dict)
    open_tokens: list[str] = field(default_factory=list)


RENTS = ("create_fleet", "RegionInstancesClient bulk_insert", "wait for it")


async def live(provider: Any, journal: Life, hangman: Hangman, tokens: list[str]) -> None:
    """Rent two, give one back, rent another, and come to an orderly end."""
    api = provider._regions[0].api if provider.name == "aws" else provider._api
    if provider.name == "aws":
        api.call = hangman.around(api.call, lambda operation, *_: str(operation))
    else:
        api.change = hangman.around(api.change, lambda client, method, *_: f"{client} {method}")
        api.finish = hangman.around(api.finish, lambda *_: "wait for it")

    async def rent(count: int, token: str) -> None:
        journal.open_tokens.append(token)
        reply = await provider.request(count, token)
        journal.open_tokens.remove(token)
        journal.held.update({one.id: one for one in reply.instances})

    try:
        await provider.start()
        await rent(WANTED, tokens[0])
        await provider.terminate([next(iter(journal.held.values())).name])
        await provider.describe()
        await rent(1, tokens[1])
        await provider.close()
    except Killed:
        assert hangman.dead


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """The cloud that the test names."""
    with place_of(request.param, tmp_path, request) as made:
        yield made


def crashes(place: Any, every: bool) -> Iterator[tuple[Life, str]]:
    """Lives of launchers, each killed elsewhere: before and after calls that rent; `every`: after any call.

    Before any other call the cloud and the disk are what they were after the one that went before it.
    """
    calls = _life(place, "whole", Hangman())[1].calls
    assert place.live() == set()
    assert sum(call in RENTS for call in calls) >= 2, calls
    assert any("terminate" in call or "delete" in call for call in calls), calls
    for number, call in enumerate(calls):
        for after in (False, True):
            if call in RENTS or (every and after):
                journal, hangman = _life(place, f"launch-{number}-{after}", Hangman(number, after))
                assert hangman.dead, call
                yield journal, f"{'after' if after else 'before'} {call} ({number})"


def _life(place: Any, name: str, hangman: Hangman) -> tuple[Life, Hangman]:
    place.anew(name)
    journal, tokens = Life(), [secrets.token_hex(16) for _ in range(2)]
    asyncio.run(live(place.provider(), journal, hangman, tokens))
    return journal, hangman


@at("aws", "gcp", **LEFT_OUT)
def test_what_a_killed_launcher_left_is_swept(place: Any) -> None:
    """`down` and `gc` find all of it wherever it was killed, and nothing the second time."""
    for _, where in crashes(place, every=True):
        had = place.live()
        assert len(had) <= WANTED, where
        assert had <= set(place.sweep()), where
        assert (place.live(), place.traces()) == (set(), []), where
        assert place.sweep() == [], where


@at("aws", "gcp", **LEFT_OUT)
def test_a_resumed_launcher_tracks_all_that_was_rented(place: Any) -> None:
    """It knows whatever lives, that is never more than were wanted, it gets what is missing, and ends all."""
    for journal, where in crashes(place, every=place.name == "gcp"):

        async def go_on(journal: Life = journal, where: str = where) -> None:
            provider = place.provider()
            await provider.start()
            await provider.recover(list(journal.held.values()), journal.open_tokens)
            there = await living(provider)
            assert there == place.live(), where
            assert len(there) <= WANTED, where
            if len(there) < WANTED:
                await provider.request(WANTED - len(there), secrets.token_hex(16))
            assert len(place.live()) == WANTED, where
            await provider.close()
            assert (place.live(), place.traces()) == (set(), []), where

        asyncio.run(go_on())
