"""Calls to AWS: clients made once, errors sorted, throttling waited out by ourselves.

The library's own retries are off: they hide what happened, and repeat a launch with a stock-out for seconds.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from cloud.aws.errors import Verdict, from_client_error, verdict_of
from cloud.provider import CloudError, CredentialsError

ATTEMPTS = 5
_FIRST_PAUSE_S = 0.5
_CONNECT_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 60.0
# What botocore raises where it cannot bring credentials: those of SSO and of `aws login` run out.
NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "SSOError", "LoginError",
)  # fmt: skip
# Refusals that other credentials may mend. The library keeps those of a file as it has read them first.
STALE = (
    "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "AuthFailure", "SignatureDoesNotMatch",
    "UnrecognizedClientException",
)  # fmt: skip
_LOG = logging.getLogger(__name__)


class ApiError(CloudError):
    """A refused call, with EC2's code and what to do about it."""

    def __init__(self, error: CloudError, code: str, verdict: Verdict) -> None:
        super().__init__(str(error))
        self.sorted = error
        self.code = code
        self.verdict = verdict


class Api:
    """One account and region. Methods block: call them from a thread. `pause` is for tests."""

    def __init__(self, region: str = "", pause: Callable[[float], None] = time.sleep) -> None:
        """Find region and credentials as every AWS tool does.

        Raises:
            CredentialsError: boto3 is missing, or there is no region or no credentials.
        """
        try:
            import boto3
            import botocore.exceptions
        except ImportError:
            raise CredentialsError(
                "--cloud aws needs boto3, which is not installed: pip install 'parcae-cli[aws]'"
            ) from None
        try:
            self._session = boto3.session.Session(region_name=region or None)
            found = self._session.get_credentials()
        except botocore.exceptions.BotoCoreError as error:
            raise CredentialsError(f"aws: {error}. Check ~/.aws/config and AWS_PROFILE") from error
        if found is None:
            raise CredentialsError(
                "aws: no credentials found. Run `aws configure`, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY"
            )
        if self._session.region_name is None:
            raise CredentialsError(
                "aws: no region is set. Set AWS_REGION, or `region` in the file of --fleet"
            )
        self.region: str = self._session.region_name
        self._pause = pause
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def client(self, service: str) -> Any:
        """The client of a service: made once, usable from several threads."""
        with self._lock:
            if service not in self._clients:
                from botocore.config import Config

                config = Config(
                    retries={"mode": "standard", "total_max_attempts": 1},
                    connect_timeout=_CONNECT_TIMEOUT_S,
                    read_timeout=_READ_TIMEOUT_S,
                    max_pool_connections=16,
                )
                self._clients[service] = self._session.client(service, config=config)
            return self._clients[service]

    def call(self, operation: str, request: Mapping[str, Any], service: str = "ec2") -> dict[str, Any]:
        """One call; throttling and outages of AWS are waited out. `operation` is boto3's method name.

        A lost connection or a broken answer is repeated too: every call of ours is harmless to repeat or
        carries a token.

        Raises:
            ApiError: it was refused.
        """
        import botocore.exceptions
        import botocore.parsers

        no_credentials = tuple(
            getattr(botocore.exceptions, name)
            for name in NO_CREDENTIALS
            if hasattr(botocore.exceptions, name)
        )
        for attempt in range(ATTEMPTS):
            last = attempt + 1 == ATTEMPTS
            try:
                reply: dict[str, Any] = getattr(self.client(service), operation)(**request)
                return reply
            except botocore.exceptions.ClientError as error:
                code = str(error.response.get("Error", {}).get("Code", "Unknown"))
                status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400))
                verdict = verdict_of(code, status)
                if code in STALE:
                    self._forget()
                if verdict is not Verdict.WAIT or last:
                    raise ApiError(from_client_error(operation, error.response), code, verdict) from error
                why = code
            except no_credentials as error:
                self._forget()
                raise ApiError(
                    CredentialsError(f"aws {operation}: {error}"), "NoCredentials", Verdict.CREDENTIALS
                ) from error
            except (
                botocore.exceptions.HTTPClientError,
                botocore.parsers.ResponseParserError,  # a proxy's page, say
            ) as error:
                if last:
                    raise ApiError(
                        CloudError(f"aws {operation}: {error}"), "ConnectionError", Verdict.WAIT
                    ) from error
                why = str(error)
            except botocore.exceptions.BotoCoreError as error:
                raise ApiError(
                    CloudError(f"aws {operation}: {error}"), type(error).__name__, Verdict.FATAL
                ) from error
            pause_s = _FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)
            _LOG.info("aws %s: %s; again in %.1f s", operation, why, pause_s)
            self._pause(pause_s)
        raise AssertionError("unreachable")

    def _forget(self) -> None:
        """Have the next call look for credentials anew: the user may have renewed them meanwhile."""
        import boto3
        import botocore.exceptions

        with self._lock, suppress(botocore.exceptions.BotoCoreError):  # a profile that is gone, say
            self._session = boto3.session.Session(region_name=self.region)
            self._clients.clear()

    def pages(
        self, operation: str, request: Mapping[str, Any], key: str, service: str = "ec2"
    ) -> list[dict[str, Any]]:
        """All items under `key`, over every page."""
        items: list[dict[str, Any]] = []
        token: dict[str, str] = {}
        while True:
            reply = self.call(operation, {**request, **token}, service)
            items += reply.get(key, [])
            if not reply.get("NextToken"):
                return items
            token = {"NextToken": reply["NextToken"]}
