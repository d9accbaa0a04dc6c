"""How the front reads where a request goes, and how its answers go out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

REGION = "us-east-1"


class RefusedCall(Exception):
    """What the front answers with an error document."""

    def __init__(self, code: str, message: str = "injected", status: int = 400) -> None:
        super().__init__(code)
        self.code, self.message, self.status = code, message, status


def region_of(environ: dict[str, Any]) -> str:
    """As the request's signature names it."""
    found = re.search(r"Credential=[^/]+/\d+/([a-z0-9-]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    return found.group(1) if found else REGION


def json_error(refused: RefusedCall) -> bytes:
    return json.dumps({"__type": refused.code, "message": refused.message}).encode()


def send(
    start: Callable[..., Any], status: int, body: bytes, kind: str = "text/xml;charset=UTF-8"
) -> list[bytes]:
    start(f"{status} X", [("content-type", kind), ("content-length", str(len(body)))])
    return [body]


def error(code: str, message: str) -> bytes:
    from xml.sax.saxutils import escape

    return (
        f"<?xml version='1.0'?><Response><Errors><Error><Code>{escape(code)}</Code><Message>{escape(message)}"
        "</Message></Error></Errors><RequestID>req-1</RequestID></Response>"
    ).encode()
