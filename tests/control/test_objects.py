"""Data in an object store: what a launch looks at before anything is rented, and what nodes are given."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from cloud.provider import CloudError, CredentialsError
from parcae_cli.catalogue import load_template
from parcae_cli.errors import UsageError
from parcae_cli.training_inputs import corpus_of
from runtime.control.backup.checkpoint_target import target_of
from runtime.control.data_set import DataFile, DataSet
from runtime.control.fleet import ssh
from runtime.control.job import objects
from runtime.planning.errors import InputError
from tests.control.object_store import SIGNED_IN, client_of, s3_server
from tests.control.test_delivery import node

TEMPLATE = load_template("gpt-tiny")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """An S3 for all tests here."""
    with s3_server() as url:
        yield url


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its client; whoever asks as a user does is let in."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for name, value in SIGNED_IN.items():
        monkeypatch.setenv(name, value)
    return client_of(endpoint)


def found(*urls: str) -> DataSet:
    """What the command makes of these."""
    _, rows = corpus_of(list(urls), TEMPLATE)
    return DataSet(tuple(DataFile(**row) for row in rows))


def test_nodes_fetch_objects_by_links_of_their_own(s3: Any, tmp_path: Path) -> None:
    """A node needs no credentials, goes on where it broke off, and notices an object that was changed."""
    texts = {"data/a.txt": b"one " * 500_000, "data/deep/b.txt": b"two " * 500, "data/c.md": b"three"}
    for key, text in texts.items():
        s3.put_object(Bucket="safe", Key=key, Body=text)
    data = found("s3://safe/data/*.txt")
    assert [file.url for file in data.files] == ["s3://safe/data/a.txt", "s3://safe/data/deep/b.txt"]
    links = partial(objects.links_to, data)

    async def body() -> None:
        async with node(tmp_path) as scene:
            part = scene.folder / data.digest / ".00000.part"
            part.parent.mkdir(parents=True)
            part.write_bytes(texts["data/a.txt"][:1_500_000])
            await scene.deliver(data, links=links)
            assert scene.content(data) == [texts["data/a.txt"], texts["data/deep/b.txt"]]
            ((_, how),) = scene.told
            assert "2.0 MB, 0.5 MB fetched in" in how
            again = found("s3://safe/data/c.md", "s3://safe/data/a.txt")
            s3.put_object(Bucket="safe", Key="data/a.txt", Body=b"four" * 500_000)
            with pytest.raises(ssh.BrokenNodeError, match=r"a\.txt: was changed or removed since the launch"):
                await scene.deliver(again, links=partial(objects.links_to, again))

    asyncio.run(body())


def test_objects_are_looked_at_before_anything_is_rented(s3: Any) -> None:
    """Each mistake is one line that names the URL."""
    tokens = io.BytesIO()
    np.save(tokens, np.zeros((2, 3)))
    short = io.BytesIO()
    np.save(short, np.arange(60))
    bodies = {"odd.bin": b"x" * 1001, "flat.npy": tokens.getvalue(), "no.npy": b"x" * 99,
              "s.npy": short.getvalue(), "small.txt": b"few"}  # fmt: skip
    for key, body in bodies.items():
        s3.put_object(Bucket="safe", Key=f"bad/{key}", Body=body)
    for url, said in {
        "s3://safe/bad/odd.bin": "1,001 bytes are not whole tokens of 2 bytes",
        "s3://safe/bad/flat.npy": r"must hold integers in one dimension, not float64 of shape \(2, 3\)",
        "s3://safe/bad/no.npy": "is not a NumPy file",
        "s3://safe/bad/*.t?t": "3 bytes of text are fewer than one sample of 65",
        "s3://safe/bad/s.npy": "60 tokens are fewer than one sample of 65",
        "s3://safe/bad/*": "of tokens .* and of text do not mix",
        "s3://safe/none/*": "matches no object",
        "s3://safe/none.txt": "s3://safe/none.txt: no such bucket or object",
        "s3://elsewhere/x*": "s3://elsewhere/x[*]: no such bucket",
        "s3://safe": "give s3://BUCKET/KEY",
        "ftp://safe/x": "give s3://BUCKET/KEY",
    }.items():
        with pytest.raises((InputError, UsageError), match=said):
            found(url)
    with pytest.raises(UsageError, match="do not mix"):
        found("s3://safe/bad/small.txt", __file__)


def test_who_is_not_let_in_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends with the code for credentials; a store that does not answer is named."""

    def refuse(error: Exception) -> Any:
        raise error

    with pytest.raises(CredentialsError, match="--data s3://b/x: the store does not let us in"):
        objects._explained("s3://b/x", lambda: refuse(PermissionError("AccessDenied")))
    with pytest.raises(CloudError, match="--data s3://b/x: connection reset"):
        objects._explained("s3://b/x", lambda: refuse(OSError("connection reset")))


def test_google_links_are_signed_by_the_key_of_a_service_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are for one object, and for hours."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {"type": "service_account", "client_email": "me@p.iam.gserviceaccount.com",
               "private_key_id": "k", "private_key": key.decode(),
               "token_uri": "http://127.0.0.1:9/token"}  # fmt: skip
    path = tmp_path / "account.json"
    path.write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    data = DataSet((DataFile("x.bin", 4, url="gs://bucket/deep/x.bin"),))
    url = urlsplit(objects.links_to(data)["0"])
    assert url.path == "/bucket/deep/x.bin"
    assert "X-Goog-Signature=" in url.query
    assert "X-Goog-Expires=43200" in url.query


FEDERATED = {
    "type": "external_account",
    "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "token_url": "https://sts.googleapis.com/v1/token",
    "credential_source": {"file": "/var/run/token"},
}
LOGIN = {"type": "authorized_user", "client_id": "i", "client_secret": "s", "refresh_token": "r"}
ACT_AS = "https://iamcredentials.googleapis.com/v1/projects/-/serviceAccounts/a@p.iam.gserviceaccount.com"
IMPERSONATED = {
    "type": "impersonated_service_account",
    "service_account_impersonation_url": f"{ACT_AS}:generateAccessToken",
    "delegates": [],
    "source_credentials": LOGIN,
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("who", [LOGIN, FEDERATED, IMPERSONATED], ids=lambda who: str(who["type"]))
def test_only_a_service_account_signs_google_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool, who: dict[str, Any]
) -> None:
    """What `gcloud auth application-default login` and its like write: said before anything is asked, with
    the way out. A user's own are good for checkpoints; federated and impersonated ones for no store.
    """
    path = tmp_path / ".config/gcloud/application_default_credentials.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(who))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if named:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
    monkeypatch.setattr(objects, "_matches", lambda url: [DataFile("x.bin", 4, url=url)])
    with pytest.raises(CredentialsError, match=rf"{who['type']}.* cannot sign\. Set GOOGLE_APPL"):
        objects.objects_of(["gs://bucket/x.bin"])
    assert objects.objects_of(["s3://bucket/x.bin"])
    if who is LOGIN:
        assert target_of("gs://bucket/checkpoints").where == "gs://bucket/checkpoints"
    else:
        with pytest.raises(CredentialsError, match=rf"{path} \({who['type']}\) cannot be used"):
            target_of("gs://bucket/checkpoints")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    assert objects.objects_of(["gs://bucket/x.bin"])
    assert target_of("gs://bucket/checkpoints").where == "gs://bucket/checkpoints"
