"""An S3 with one bucket, `safe`, for tests: moto's server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

KEYS = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
SIGNED_IN = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    client_of(url).create_bucket(Bucket="safe")
    yield url
    server.stop()


def client_of(url: str) -> Any:
    """A client that may do everything there."""
    import boto3

    return boto3.client("s3", endpoint_url=url, **KEYS)
