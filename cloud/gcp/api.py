"""Calls of google-cloud-compute: clients, errors and waiting. The library is loaded here, late."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from cloud.gcp.errors import ApiError, Verdict
from cloud.provider import CloudError, CredentialsError

# The variable by which gcloud itself is told of another endpoint.
ENDPOINT = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"
_CALL_TIMEOUT_S = 60.0
_WAIT_TIMEOUT_S = 150.0  # an operation is waited for by calls of two minutes each
ATTEMPTS = 5
_FIRST_PAUSE_S = 0.5
_LOG = logging.getLogger(__name__)


class Api:
    """One project. Every call may block and is to be made off the event loop. `pause` is for tests.

    Rate limits and hiccups of the service are waited out by ourselves, ever more slowly. That is harmless for
    calls that make something too: they carry a request id, and ending what has ended is no error. The
    library's own retries are off, for reading too: they would go on for ten minutes and tell nobody.
    """

    def __init__(self, project: str = "", pause: Callable[[float], None] = time.sleep) -> None:
        """Raises:
        CloudError: the library is missing, or there is no project.
        CredentialsError: there are no credentials.
        """
        try:
            import google.auth
            from google.api_core.client_options import ClientOptions
            from google.auth.credentials import AnonymousCredentials
            from google.auth.exceptions import GoogleAuthError
            from google.cloud import compute_v1
        except ImportError as error:
            raise CloudError(
                "gcp: google-cloud-compute is not installed. pip install 'parcae-cli[gcp]'"
            ) from error
        self._compute: Any = compute_v1
        endpoint = os.environ.get(ENDPOINT, "")
        options: dict[str, Any] = {}
        found = os.environ.get("GOOGLE_CLOUD_PROJECT", "")
        if endpoint.startswith("http://"):  # no credentials in clear text, whatever answers there
            options["credentials"] = AnonymousCredentials()  # type: ignore[no-untyped-call]
        else:
            try:
                options["credentials"], default = google.auth.default()
            except GoogleAuthError as error:  # there are none, or they are not what they should be
                said = " ".join(str(error).split())[:300].rstrip(".")
                raise CredentialsError(
                    f"gcp: no credentials: {said}. Run `gcloud auth application-default login`"
                ) from error
            found = found or default or ""
        if endpoint:
            options["client_options"] = ClientOptions(api_endpoint=endpoint.rstrip("/"))
        self._options, self._pause = options, pause
        self.project = project or found
        if not self.project:
            raise CloudError("gcp: no project. Set `project` in the fleet's file, or GOOGLE_CLOUD_PROJECT")
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def _client(self, name: str) -> Any:
        with self._lock:
            if name not in self._clients:
                self._clients[name] = getattr(self._compute, name)(**self._options)
            return self._clients[name]

    def read(self, client: str, method: str, request: Mapping[str, Any]) -> Any:
        """A call that changes nothing.

        Raises:
            ApiError: it was refused.
        """
        bound = self._bound(client, method)
        timeout_s = _WAIT_TIMEOUT_S if method == "wait" else _CALL_TIMEOUT_S
        return self._call(
            f"{client}.{method}", lambda: bound(request=dict(request), retry=None, timeout=timeout_s)
        )

    def rows(self, client: str, method: str, request: Mapping[str, Any]) -> list[Any]:
        """Every row of a list, all pages."""
        bound = self._bound(client, method)
        options = {"retry": None, "timeout": _CALL_TIMEOUT_S}
        found: list[Any] = self._call(
            f"{client}.{method}", lambda: list(bound(request=dict(request), **options))
        )
        return found

    def change(self, client: str, method: str, request: Mapping[str, Any]) -> Any:
        """A call that makes or ends something. The operation, which may still be running.

        Raises:
            ApiError: it was refused, or nobody knows what became of it (verdict `wait`).
        """
        bound = self._bound(client, f"{method}_unary")
        return self._call(
            f"{client}.{method}", lambda: bound(request=dict(request), retry=None, timeout=_CALL_TIMEOUT_S)
        )

    def finish(self, operation: Any, timeout_s: float) -> Any:
        """Wait until an operation has ended, in its zone or region.

        The operation's own `result()` would ask the public endpoint, whatever the client was told.

        Raises:
            ApiError: it failed, or has not ended in time (verdict `wait`).
        """
        call = str(operation.operation_type or "operation")
        deadline_s = time.monotonic() + timeout_s
        where: dict[str, str] = {"project": self.project, "operation": operation.name}
        client = "ZoneOperationsClient"
        if operation.zone:
            where["zone"] = operation.zone.rsplit("/", 1)[-1]
        else:
            client, where["region"] = "RegionOperationsClient", operation.region.rsplit("/", 1)[-1]
        while operation.status.name != "DONE":
            if time.monotonic() > deadline_s:
                said = f"{operation.name} has not ended in {timeout_s:g} s"
                raise ApiError(call, "internalError", said, 504)
            operation = self.read(client, "wait", where)
        status = int(operation.http_error_status_code or 400)
        found = [ApiError(call, row.code, row.message, status, ended=True) for row in operation.error.errors]
        for error in sorted(found, key=lambda error: error.elsewhere):  # what no other pool mends goes first
            raise error
        return operation

    def _bound(self, client: str, method: str) -> Callable[..., Any]:
        bound: Callable[..., Any] = getattr(self._client(client), method)
        return bound

    def _call(self, call: str, send: Callable[[], Any]) -> Any:
        for attempt in range(ATTEMPTS - 1):
            try:
                return self._once(call, send)
            except ApiError as error:
                error.again = attempt > 0
                if error.verdict is not Verdict.WAIT:
                    raise
                pause_s = _FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.5)
                _LOG.info("%s; again in %.1f s", error, pause_s)
            self._pause(pause_s)
        try:
            return self._once(call, send)
        except ApiError as error:
            error.again = True
            raise

    def _once(self, call: str, send: Callable[[], Any]) -> Any:
        from google.api_core.exceptions import GoogleAPICallError, RetryError
        from google.auth.exceptions import GoogleAuthError, TransportError

        try:
            return send()
        except GoogleAPICallError as error:
            reasons = [str(row.get("reason", "")) for row in error.errors if isinstance(row, Mapping)]
            raise ApiError(
                call, reasons[0] if reasons else type(error).__name__, error.message, int(error.code or 500)
            ) from error
        except GoogleAuthError as error:
            if isinstance(error, TransportError) or error.retryable:  # nobody has refused us
                raise ApiError(call, "backendError", str(error), 503) from error
            raise ApiError(call, "authError", str(error), 401) from error
        except (RetryError, OSError) as error:
            raise ApiError(call, "backendError", str(error), 503) from error
