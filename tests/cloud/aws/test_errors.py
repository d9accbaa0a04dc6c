"""EC2's errors, through boto3's own client: what each makes the caller do."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloud.aws.api import ATTEMPTS, NO_CREDENTIALS, Api, ApiError
from cloud.aws.errors import Verdict, clock_skew_s, from_client_error, quota_of, verdict_of
from cloud.provider import CloudError, CredentialsError, NoCapacityError, QuotaError
from tests.cloud.aws.front import ENVIRONMENT

FLEET = {"LaunchTemplateConfigs": [], "TargetCapacitySpecification": {"TotalTargetCapacity": 1}}


class Stubbed:
    """An API whose client answers from botocore's Stubber."""

    def __init__(self) -> None:
        from botocore.stub import Stubber

        self.pauses: list[float] = []
        self.api = Api(pause=self.pauses.append)
        self.stub = Stubber(self.api.client("ec2"))
        self.stub.activate()

    def refuse(self, code: str, status: int = 400) -> None:
        """The next CreateFleet."""
        self.stub.add_client_error("create_fleet", code, "said EC2", http_status_code=status)


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stubbed]:
    """No network at all."""
    pytest.importorskip("boto3")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    made = Stubbed()
    yield made
    made.stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    ("code", "status", "kind", "verdict"),
    [
        ("InsufficientInstanceCapacity", 500, NoCapacityError, Verdict.NEXT_POOL),
        ("Unsupported", 400, NoCapacityError, Verdict.NEXT_POOL),
        ("NobodyHasHeardOfThis", 400, NoCapacityError, Verdict.NEXT_POOL),
        ("MaxSpotInstanceCountExceeded", 400, QuotaError, Verdict.QUOTA),
        ("VcpuLimitExceeded", 400, QuotaError, Verdict.QUOTA),
        ("UnauthorizedOperation", 403, CredentialsError, Verdict.CREDENTIALS),
        ("AuthFailure", 401, CredentialsError, Verdict.CREDENTIALS),
        ("RequestExpired", 400, CredentialsError, Verdict.CREDENTIALS),
        ("SpotMaxPriceTooLow", 400, CloudError, Verdict.FATAL),
        ("IdempotentParameterMismatch", 400, CloudError, Verdict.FATAL),
        ("InvalidInstanceID.NotFound", 400, CloudError, Verdict.NOT_FOUND),
    ],
)
def test_each_error_says_what_to_do(
    stubbed: Stubbed, code: str, status: int, kind: type[CloudError], verdict: Verdict
) -> None:
    """One request is sent, whatever the HTTP status; the error has the right kind, call and code."""
    stubbed.refuse(code, status)
    with pytest.raises(ApiError) as caught:
        stubbed.api.call("create_fleet", FLEET)
    assert (type(caught.value.sorted), caught.value.verdict) == (kind, verdict)
    assert str(caught.value).startswith(f"aws create_fleet: {code}: said EC2")
    assert stubbed.pauses == []


def test_credentials_that_cannot_be_brought_are_said_to_be_so(
    stubbed: Stubbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session of SSO or of `aws login` that ran out in mid-job: no retry, and the error of credentials."""
    import botocore.exceptions

    for name in NO_CREDENTIALS:
        kind = getattr(botocore.exceptions, name)
        error = kind.__new__(kind)  # each wants words of its own, which say nothing here

        def fail(error: Exception = error, **request: object) -> None:
            raise error

        client = SimpleNamespace(create_fleet=fail)
        monkeypatch.setattr(stubbed.api, "client", lambda service, client=client: client)
        with pytest.raises(ApiError) as caught:
            stubbed.api.call("create_fleet", FLEET)
        assert (type(caught.value.sorted), caught.value.verdict) == (CredentialsError, Verdict.CREDENTIALS)
    assert stubbed.pauses == []


def test_credentials_that_were_renewed_are_used(
    stubbed: Stubbed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those of a file ran out in mid-job, and the user wrote others there: the launcher takes them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    path = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))

    def write(key: str) -> None:
        path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = x\n")

    from botocore.awsrequest import AWSResponse

    used: list[str] = []

    class Body(io.BytesIO):
        def stream(self) -> Iterator[bytes]:
            yield self.read()

    def signed(request: Any, **more: Any) -> Any:
        used.append(re.findall(r"Credential=(\w+)/", str(request.headers["Authorization"]))[0])
        status, code = (200, "") if used[-1] == "NEW" else (400, "ExpiredToken")
        body = f"<Response><Errors><Error><Code>{code}</Code></Error></Errors></Response>" if code else "<R/>"
        return AWSResponse(request.url, status, {}, Body(body.encode()))

    write("OLD")
    api = Api(pause=stubbed.pauses.append)
    make = api.client

    def client(service: str) -> Any:
        made = make(service)
        made.meta.events.register("before-send.ec2", signed, unique_id="answer")
        return made

    monkeypatch.setattr(api, "client", client)
    with pytest.raises(ApiError, match="ExpiredToken"):
        api.call("describe_instances", {})
    write("NEW")
    api.call("describe_instances", {})
    assert used == ["OLD", "NEW"]


def test_throttling_is_tried_again_a_few_times_and_ever_more_slowly(stubbed: Stubbed) -> None:
    """Then it is an error like any other."""
    for _ in range(ATTEMPTS):
        stubbed.refuse("RequestLimitExceeded", 503)
    with pytest.raises(ApiError, match="RequestLimitExceeded"):
        stubbed.api.call("create_fleet", FLEET)
    assert len(stubbed.pauses) == ATTEMPTS - 1
    assert stubbed.pauses[-1] > stubbed.pauses[0]


def test_a_clock_that_is_off_is_named() -> None:
    """AWS refuses signatures of another time: the message says how far off this machine is."""
    now = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    response = {
        "Error": {"Code": "RequestExpired", "Message": "Request has expired."},
        "ResponseMetadata": {"HTTPStatusCode": 400, "HTTPHeaders": {"date": "Thu, 01 Jan 2026 11:40:00 GMT"}},
    }
    error = from_client_error("describe_instances", response, now)
    assert isinstance(error, CredentialsError)
    assert "clock is +1200 s off" in str(error)
    assert "clock" not in str(from_client_error("x", response, now - timedelta(minutes=20)))
    assert clock_skew_s("", now) == clock_skew_s("nonsense", now) == 0.0


@pytest.mark.parametrize(
    ("instance_type", "words"),
    [
        ("g5.xlarge", "G and VT"),
        ("p3.2xlarge", "P4, P3 and P2"),
        ("p5.4xlarge", "P5"),
        ("m5.large", "Standard"),
    ],
)
def test_a_quota_is_named_by_the_types_family(instance_type: str, words: str) -> None:
    """Each family counts against a limit of its own."""
    assert words in quota_of(instance_type)[1]


def test_unknown_codes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """So that somebody can sort them later."""
    assert verdict_of("BrandNew") is Verdict.NEXT_POOL
    assert "BrandNew" in caplog.text
