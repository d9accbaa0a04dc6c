"""Checkpoints in object stores: S3 by moto's server, Google's by fsspec's file system in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from cloud.provider import CredentialsError
from runtime.control.backup.checkpoint import Checkpoint
from runtime.control.backup.checkpoint_target import FolderTarget, StoreTarget, target_of
from runtime.planning.errors import InputError
from tests.control.test_checkpoint import PARAMETERS, STATE, TEMPLATE


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """moto's server with one bucket."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket="safe")
    yield url
    server.stop()


@pytest.fixture
def signed_in(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    monkeypatch.setenv("AWS_REGION", "us-east-1")


def in_memory(name: str) -> StoreTarget:
    return StoreTarget(f"gs://safe/{name}", fsspec.filesystem("memory"), f"/safe/{name}")


def check_target(target: StoreTarget) -> None:
    """Write, read the newest, read one by name, remove."""
    target.check()
    with pytest.raises(InputError, match="no checkpoint here"):
        target.read()
    first = target.write(Checkpoint(9, 5, TEMPLATE, {0: STATE[1], 1: STATE[0]}), PARAMETERS)
    second = target.write(Checkpoint(10, 5, TEMPLATE, STATE), PARAMETERS)
    assert (first, second) == (f"{target.where}/step-9", f"{target.where}/step-10")
    found = target.read()
    assert (found.step, found.seed, found.template, found.layers) == (10, 5, TEMPLATE, STATE)
    target.remove(10)
    target.remove(10)
    assert target.read().step == 9


def test_s3_keeps_checkpoints(signed_in: None) -> None:
    """Through obstore, as a user names it; one checkpoint can be named too."""
    target = target_of("s3://safe/some/prefix")
    assert isinstance(target, StoreTarget)
    check_target(target)
    assert target_of("s3://safe/some/prefix/step-9").read().layers == {0: STATE[1], 1: STATE[0]}


def test_gs_keeps_checkpoints() -> None:
    """The same through fsspec's interface."""
    check_target(in_memory("whole"))


def test_without_its_description_a_checkpoint_is_none() -> None:
    """The writer died before the last object: the older one is taken."""
    target = in_memory("broken")
    target.write(Checkpoint(1, 5, TEMPLATE, STATE), PARAMETERS)
    target.write(Checkpoint(2, 5, TEMPLATE, STATE), PARAMETERS)
    fsspec.filesystem("memory").rm_file("/safe/broken/step-2/checkpoint.json")
    assert target.read().step == 1


def test_a_bucket_that_is_not_there_is_named(signed_in: None) -> None:
    """One line, before anything is rented."""
    with pytest.raises(InputError, match="s3://elsewhere/x: no such bucket"):
        target_of("s3://elsewhere/x").check()
    with pytest.raises(InputError, match="s3://elsewhere/x: no such bucket"):
        target_of("s3://elsewhere/x").read()


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the one that ends the command with 4."""
    files = fsspec.filesystem("memory")
    target = StoreTarget("s3://safe/x", files, "/safe/x")
    said = "Error performing PUT http://169.254.169.254/latest/api/token"
    monkeypatch.setattr(files, "pipe_file", lambda *_: (_ for _ in ()).throw(PermissionError(said)))
    with pytest.raises(CredentialsError, match=r"s3://safe/x: .*no credentials were found"):
        target.check()


@pytest.mark.parametrize("where", ["ftp://host/x", "s3://", "s3:///x"])
def test_what_is_no_place_is_refused(where: str) -> None:
    """The error says what to give."""
    with pytest.raises(InputError, match="give a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"):
        target_of(where)


def test_a_folder_forgets_old_checkpoints(tmp_path: Path) -> None:
    """What is removed is gone at once, and once only."""
    target = FolderTarget(tmp_path / "safe")
    target.check()
    for step in (1, 2):
        target.write(Checkpoint(step, 5, TEMPLATE, STATE), PARAMETERS)
    target.remove(1)
    target.remove(1)
    assert [path.name for path in (tmp_path / "safe").iterdir()] == ["step-2"]
    assert target.read().step == 2
