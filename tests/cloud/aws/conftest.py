"""The front for tests of the AWS provider: one server for all, reset between them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cloud.aws.front import ENVIRONMENT, Front
from tests.cloud.aws.serving import reset, served


@pytest.fixture(scope="session")
def endpoint() -> Iterator[tuple[str, Front]]:
    """moto takes seconds to start: once."""
    pytest.importorskip("moto", reason="the AWS tests need moto: pip install -e '.[dev]'")
    front = Front()
    with served(front) as url:
        yield url, front


@pytest.fixture
def ec2(endpoint: tuple[str, Front], monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """A fresh account; boto3 finds it by the environment, as it would a real one."""
    url, front = endpoint
    reset()
    fresh = Front()
    front.__dict__.update(fresh.__dict__)
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": url}.items():
        monkeypatch.setenv(name, value)
    yield front
