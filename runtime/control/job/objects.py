"""Data in an object store: what it is, and links by which nodes fetch it without credentials of their own.

A node gets a URL for each object that is good for some hours and for reading that object alone. (Credentials
on nodes were refused: they would be the user's own, or a role that somebody has to make.)
"""

from __future__ import annotations

import fnmatch
import io
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from cloud.provider import CloudError, CredentialsError
from runtime.control.backup.checkpoint_target import SCHEMES, explained_error, store_options
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


def tokens_in(files: Sequence[DataFile], vocab: int) -> tuple[int, str]:
    """How many tokens the files have, by the rules of `engine.data`, and what they are called.

    Raises:
        InputError: kinds are mixed, or a file is not what its name says.
    """
    kinds = {file.name.endswith((".bin", ".npy")) for file in files}
    if len(kinds) > 1:
        raise InputError("--data: files of tokens (.bin, .npy) and of text do not mix")
    if kinds == {False}:
        return sum(file.size_bytes for file in files), "bytes of text"
    width = 2 if vocab <= 1 << 16 else 4
    total = 0
    for file in files:
        if file.name.endswith(".npy"):
            total += _npy_tokens(file)
            continue
        if file.size_bytes % width:
            raise InputError(
                f"--data {file.url}: {file.size_bytes:,} bytes are not whole tokens of {width} bytes (vocab "
                f"is {vocab:,})"
            )
        total += file.size_bytes // width
    return total, "tokens"


def _npy_tokens(file: DataFile) -> int:
    from numpy.lib import format as npy

    head = io.BytesIO(head_of(file))
    try:
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(head)]
        shape, _, kind = read(head)
    except (ValueError, KeyError, EOFError) as error:
        raise InputError(f"--data {file.url}: is not a NumPy file: {error}") from None
    if len(shape) != 1 or kind.kind not in "iu":
        raise InputError(
            f"--data {file.url}: must hold integers in one dimension, not {kind} of shape {shape}"
        )
    return int(shape[0])


def _matches(url: str) -> list[DataFile]:
    import obstore

    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
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


def _store_of(url: str) -> tuple[Any, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    options = store_options(scheme)
    from obstore.store import from_url

    return from_url(f"{scheme}://{bucket}", **options), key


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
