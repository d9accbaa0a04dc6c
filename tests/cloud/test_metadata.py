"""The metadata endpoint of local nodes keeps AWS's rules, to AWS's own client's satisfaction."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest

from cloud.local.metadata import MetadataService
from cloud.types import Notice, NoticeKind
from runtime.control.node.notices import MetadataClient, NoticeWatch, parse_interruption

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"
ACTION = "/latest/meta-data/spot/instance-action"


async def ask(service: MetadataService, method: str, path: str, **headers: str) -> tuple[int, str]:
    """One request by the standard library's client, in a thread."""

    def exchange() -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(service.url).port or 0, timeout=5)
        connection.request(
            method, path, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply.status, text

    return await asyncio.to_thread(exchange)


def with_service(scene: Callable[[MetadataService], Any]) -> None:
    """Run a scene against a listening service."""

    async def run() -> None:
        service = MetadataService("i-1", "process", "local-a")
        await service.listen()
        try:
            await scene(service)
        finally:
            service.close()

    asyncio.run(run())


@contextmanager
def later(monkeypatch: pytest.MonkeyPatch, by_s: float) -> Iterator[None]:
    """Let the clock stand `by_s` later."""
    now_s = time.time() + by_s
    with monkeypatch.context() as patch:
        patch.setattr("cloud.local.metadata.time.time", lambda: now_s)
        yield


def test_token_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 for a bad time to live, 403 when forwarded, 401 without a valid token, 404 for what is not."""

    async def scene(service: MetadataService) -> None:
        for ttl in ("0", "21601", "-1", "soon", ""):
            assert (await ask(service, "PUT", "/latest/api/token", **{TTL: ttl}))[0] == 400
        assert (await ask(service, "PUT", "/latest/api/token"))[0] == 400
        forwarded = {TTL: "60", "X-Forwarded-For": "10.0.0.1"}
        assert (await ask(service, "PUT", "/latest/api/token", **forwarded))[0] == 403
        assert (await ask(service, "GET", ACTION))[0] == 401
        assert (await ask(service, "GET", ACTION, **{TOKEN: "made-up"}))[0] == 401
        status, token = await ask(service, "PUT", "/latest/api/token", **{TTL: "60"})
        assert status == 200
        assert (await ask(service, "GET", ACTION, **{TOKEN: token}))[0] == 404
        assert await ask(service, "GET", "/latest/meta-data/instance-id", **{TOKEN: token}) == (200, "i-1")
        assert (await ask(service, "POST", ACTION, **{TOKEN: token}))[0] == 405
        listing = (await ask(service, "GET", "/latest/meta-data/", **{TOKEN: token}))[1].split()
        assert {"instance-id", "placement/"} <= set(listing)
        with later(monkeypatch, 61.0):
            assert (await ask(service, "GET", ACTION, **{TOKEN: token}))[0] == 401

    with_service(scene)


def test_an_interruption_appears_with_its_time() -> None:
    """Once announced, the action and the time can be read, to the millisecond."""

    async def scene(service: MetadataService) -> None:
        _, token = await ask(service, "PUT", "/latest/api/token", **{TTL: "60"})
        service.interrupt(1_800_000_000.25)
        status, text = await ask(service, "GET", ACTION, **{TOKEN: token})
        assert (status, json.loads(text)["action"]) == (200, "terminate")
        assert datetime.fromisoformat(json.loads(text)["time"]).timestamp() == 1_800_000_000.25
        assert parse_interruption(text) == Notice(NoticeKind.INTERRUPTION, 1_800_000_000.25)

    with_service(scene)


@pytest.mark.parametrize(
    "text", ["", "{}", '{"action": "none"}', '{"action": "terminate", "time": "soon"}', "[1]"]
)
def test_nonsense_is_no_notice(text: str) -> None:
    """What does not announce an end is not taken for a notice."""
    assert parse_interruption(text) is None


def test_the_agents_client_renews_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client reads over one connection, and fetches a new token when the old one has expired."""

    async def scene(service: MetadataService) -> None:
        client = MetadataClient(service.url)
        assert await asyncio.to_thread(client.read, "instance-life-cycle") == "spot"
        assert await asyncio.to_thread(client.read, "spot/instance-action") is None
        with later(monkeypatch, 30_000.0):
            assert await asyncio.to_thread(client.read, "instance-id") == "i-1"

    with_service(scene)


@pytest.mark.parametrize("period_s", [0.1, 1.0, 2.0, 5.0])
def test_both_warnings_are_looked_for_every_five_seconds_at_least(
    monkeypatch: pytest.MonkeyPatch, period_s: float
) -> None:
    """The interruption at every poll; the hint about rebalancing less often, where polls come thick."""
    watch = NoticeWatch("http://127.0.0.1:9", period_s, lambda notice: None)
    asked_s: dict[str, list[float]] = {}
    now_s = 0.0

    class Clock:
        def is_set(self) -> bool:
            return now_s > 30

        def wait(self, pause_s: float) -> None:
            nonlocal now_s
            now_s += pause_s

    monkeypatch.setattr(watch, "_ended", Clock())
    monkeypatch.setattr(watch._client, "read", lambda path: asked_s.setdefault(path, []).append(now_s))
    watch.run()
    interruption, hint = asked_s["spot/instance-action"], asked_s["events/recommendations/rebalance"]
    assert max(after - before for before, after in pairwise(interruption)) <= period_s + 1e-9
    assert max(after - before for before, after in pairwise(hint)) <= 5.0 + 1e-9
    assert hint[0] == 0.0


def test_botocore_accepts_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's own client gets its token and reads the region's zone, and finds no credentials."""
    utils = pytest.importorskip("botocore.utils", reason="botocore is not installed")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)  # the stand-in of EC2 sets it

    async def scene(service: MetadataService) -> None:
        service.values["placement/availability-zone"] = "us-east-1b"
        region = utils.InstanceMetadataRegionFetcher(base_url=service.url)
        assert await asyncio.to_thread(region.retrieve_region) == "us-east-1"
        role = utils.InstanceMetadataFetcher(base_url=service.url, num_attempts=1, timeout=2)
        assert await asyncio.to_thread(role.retrieve_iam_role_credentials) == {}

    with_service(scene)
