"""Data in an object store: what it is, and links by which nodes fetch it without credentials of their own.

A node gets a URL for each object that is good for some hours and for reading that object alone. (Credentials
on nodes were refused: they would be the user's own, or a role that somebody has to make.)
"""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import PurePath
from typing import Any, TypeVar

from cloud.provider import CloudError, CredentialsError
from runtime.control.backup.checkpoint_target import (
    SCHEMES,
    explained_error,
    google_credentials,
    store_options,
)
from runtime.control.data_rules import CorpusError, bin_tokens, check_array, samples_of, unit_of
from runtime.control.data_set import DataFile, DataSet
from runtime.planning.errors import InputError

_LINK_LIVES = timedelta(hours=12)
_HEAD_BYTES = 1 << 16
_WILD = "*?["
Found = TypeVar("Found")


def objects_of(urls: Sequence[str]) -> tuple[DataFile, ...]:
    """The objects that these URLs name, sorted, each once; `*`, `?` and `[..]` stand for parts of a name.

    Raises:
        InputError: a URL is none, or nothing is there.
        CloudError: the store does not let us in, or does not answer; or no links could be made.
    """
    found: dict[str, DataFile] = {}
    for url in urls:
        _check_signer(url)
        matches = _matches(url)
        if not matches:
            raise InputError(f"--data {url}: matches no object")
        found.update((file.url, file) for file in matches)
    return tuple(found[url] for url in sorted(found))


def head_of(file: DataFile) -> bytes:
    """The first bytes of an object."""
    store, key = _store_of(file.url)
    import obstore

    length = min(file.size_bytes, _HEAD_BYTES)
    if not length:
        return b""
    return bytes(_explained(file.url, lambda: obstore.get_range(store, key, start=0, length=length)))


def links_to(data: DataSet) -> Mapping[str, str]:
    """A URL for each object of the set, by its index; none for local files.

    Raises:
        CloudError: they cannot be made.
    """
    import obstore

    links: dict[str, str] = {}
    for index, file in enumerate(data.files):
        if file.url:
            store, key = _store_of(file.url)
            links[str(index)] = _explained(
                file.url,
                lambda store=store, key=key: obstore.sign(store, "GET", key, _LINK_LIVES),  # type: ignore[misc]
            )
    return links


def samples_in(files: Sequence[DataFile], vocab: int, seq: int) -> int:
    """How many samples the objects have, by the rules that hold for files.

    Raises:
        CorpusError: kinds are mixed, an object is not what its name says, or there is not one sample.
    """
    unit = unit_of([file.name for file in files])
    return samples_of(sum(_tokens(file, vocab) for file in files), unit, seq)


def _tokens(file: DataFile, vocab: int) -> int:
    suffix = PurePath(file.name).suffix
    if suffix == ".npy":
        return _npy_tokens(file)
    if suffix == ".bin":
        return bin_tokens(file.url, file.size_bytes, vocab)[0]
    return file.size_bytes


def _npy_tokens(file: DataFile) -> int:
    from numpy.lib import format as npy

    head = io.BytesIO(head_of(file))
    try:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(head)]
        shape, _, kind = read(head)
    except (ValueError, KeyError, EOFError) as error:
        raise CorpusError(f"{file.url}: is not a NumPy file: {error}") from None
    check_array(file.url, str(kind), shape, kind.kind)
    return int(shape[0])


def _matches(url: str) -> list[DataFile]:
    import obstore

    scheme, bucket, key = _parts(url)
    if scheme not in SCHEMES or not bucket or not key:
        raise InputError(f"--data {url}: give s3://BUCKET/KEY or gs://BUCKET/KEY; * ? [..] may stand in KEY")
    store, _ = _store_of(url)
    wild = [index for index, char in enumerate(key) if char in _WILD]
    if not wild:
        rows = [_explained(url, lambda: obstore.head(store, key))]
    else:
        prefix = key[: wild[0]].rpartition("/")[0]
        listed = _explained(url, lambda: obstore.list(store, prefix or None).collect())
        rows = [row for row in listed if fnmatch.fnmatchcase(row["path"], key)]
    return [
        DataFile(
            row["path"].rpartition("/")[2],
            int(row["size"]),
            url=f"{scheme}://{bucket}/{row['path']}",
            etag=row["e_tag"] or "",
        )
        for row in rows
    ]


def _parts(url: str) -> tuple[str, str, str]:
    """Scheme, bucket and key."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return scheme, bucket, key


def _store_of(url: str) -> tuple[Any, str]:
    scheme, bucket, key = _parts(url)
    options = store_options(scheme)
    from obstore.store import from_url

    return from_url(f"{scheme}://{bucket}", **options), key


def _check_signer(url: str) -> None:
    """Google's links are signed by a service account; a user's own credentials cannot sign.

    Said before anything is rented: the library would ask Google to sign as an account that there is not.

    Raises:
        CredentialsError: the credentials are a user's, and nothing else is named.
    """
    if url.startswith("gs://") and (found := google_credentials()) and found[1] != "service_account":
        raise CredentialsError(
            f"--data {url}: nodes fetch it by signed links, and the credentials in {found[0]} ({found[1]}) "
            "cannot sign. Set GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account that may "
            "read it"
        )


def _explained(url: str, call: Callable[[], Found]) -> Found:
    try:
        return call()
    except FileNotFoundError as error:  # asked for an object's head, stores do not say which of the two
        raise InputError(f"--data {url}: no such bucket or object") from error
    except Exception as error:
        made = explained_error(f"--data {url}", error)
        if isinstance(made, InputError | CredentialsError):
            raise made from error
        raise CloudError(str(made)) from error
