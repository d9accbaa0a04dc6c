"""A Compute Engine of its own for every test; the client finds it by the environment, as gcloud would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloud.gcp.api import ENDPOINT
from tests.cloud.gcp.fake_compute import PROJECT, FakeCompute
from tests.cloud.gcp.serving import Served


@pytest.fixture
def compute(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCompute]:
    """The fake. In the end no request, and no answer of its own, has broken the published description."""
    pytest.importorskip("google.cloud.compute_v1", reason="needs pip install 'parcae-cli[gcp]'")
    fake = FakeCompute()
    served = Served(fake)
    monkeypatch.setenv(ENDPOINT, served.url)
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", PROJECT)
    yield fake
    served.close()
    assert fake.violations == []
