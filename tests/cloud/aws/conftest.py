"""The front for tests of the AWS provider: one server for all, reset between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from cloud.aws.api import Api
from tests.cloud.aws.front import ENVIRONMENT, Front
from tests.cloud.aws.serving import reset, served


@pytest.fixture(scope="session")
def endpoint() -> Iterator[tuple[str, Front]]:
    """moto takes seconds to start: once."""
    pytest.importorskip("moto", reason="the AWS tests need moto: pip install -e '.[dev]'")
    front = Front()
    with served(front) as url:
        yield url, front


_CLIENTS: dict[tuple[str, str, str], Any] = {}
_new_client = Api.client


def _client(self: Api, service: str) -> Any:
    """The library takes 0.3 s to make one: once for each service and region."""
    key = os.environ["AWS_ENDPOINT_URL"], self.region, service
    if key not in _CLIENTS:
        _CLIENTS[key] = _new_client(self, service)
    return _CLIENTS[key]


@pytest.fixture
def ec2(endpoint: tuple[str, Front], monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """A fresh account; boto3 finds it by the environment, as it would a real one."""
    url, front = endpoint
    reset()
    fresh = Front()
    front.__dict__.update(fresh.__dict__)
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(Api, "client", _client)
    yield front
