"""Where checkpoints are kept: a folder, or a prefix of an object store, named by s3://... or gs://...

Object stores are reached through fsspec's interface, by obstore. (s3fs was refused: it pins a botocore that
no current boto3 accepts.) A checkpoint there is the same files, checkpoint.json last: without it, what is
there is no checkpoint.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from cloud.provider import CredentialsError
from runtime.control.backup import checkpoint
from runtime.control.backup.checkpoint import ABOUT, FILES, Checkpoint, Parameter
from runtime.planning.errors import InputError

SCHEMES = ("s3", "gs")
_RETRY_S = 20.0
# Where obstore looks for a service account before it takes the user's own credentials, and what these may be.
_GOOGLE_ACCOUNTS = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY")
_GOOGLE_TYPES = ("service_account", "authorized_user")
_PACKAGE = "pip install 'parcae-cli[stores]'"


class StoreError(OSError):
    """An object store did not do what it was asked; the message names the URL."""


class CheckpointTarget(Protocol):
    """A place for checkpoints; `where` names it to the user."""

    where: str

    def check(self) -> None:
        """Try whether it can be written.

        Raises:
            InputError: it is not there.
            CredentialsError: the store does not accept who we are.
        """

    def write(self, content: Checkpoint, parameters: Sequence[Parameter]) -> str:
        """Write a checkpoint and return where it is; `parameters` say what its layers consist of.

        Raises:
            OSError: it could not be written; nothing is left that looks like one.
        """

    def read(self) -> Checkpoint:
        """Read this checkpoint, or the newest one here.

        Raises:
            InputError: there is none that is whole.
            CredentialsError: the store does not accept who we are.
        """

    def empty(self) -> bool:
        """Whether no checkpoint is here."""

    def remove(self, step: int) -> None:
        """Remove the checkpoint of a step, if it is here."""


def target_of(where: str) -> CheckpointTarget:
    """The target of a folder's path or a URL.

    Raises:
        InputError: it names a store that we do not know, or the package for it is not installed.
    """
    scheme, separator, rest = where.partition("://")
    if not separator:
        return FolderTarget(Path(where))
    bucket, _, prefix = rest.partition("/")
    if scheme not in SCHEMES or not bucket:
        raise InputError(f"{where}: give a folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX")
    root = "/".join(filter(None, (bucket, prefix.strip("/"))))
    return StoreTarget(where.rstrip("/"), file_system(scheme), root)


def file_system(scheme: str) -> Any:
    """fsspec's file system of a store; credentials are those that the cloud's own tools use.

    Raises:
        InputError: the package is not installed.
    """
    options = store_options(scheme)
    from obstore.fsspec import FsspecStore

    make: Any = FsspecStore
    return make(scheme, **options)


def store_options(scheme: str) -> dict[str, Any]:
    """What obstore is told of a store; credentials are those that the cloud's own tools use.

    Raises:
        InputError: the package is not installed.
        CredentialsError: it cannot use those that there are.
    """
    try:
        import obstore  # noqa: F401
    except ImportError:
        raise InputError(f"{scheme}://: object stores need one more package: {_PACKAGE}") from None
    retry = {"max_retries": 5, "retry_timeout": timedelta(seconds=_RETRY_S)}
    options: dict[str, Any] = {"retry_config": retry}
    if scheme == "gs":
        _check_google()
    if scheme == "s3" and os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
        options["client_options"] = {"allow_http": True}
    if scheme == "s3" and "AWS_ACCESS_KEY_ID" not in os.environ:
        options |= _shared_aws_settings()
    return options


def google_credentials() -> tuple[Path, str] | None:
    """The file of Google's own credentials, and their type; None where there is none, or it cannot be read,
    or a service account is named for object stores alone.
    """
    if any(name in os.environ for name in _GOOGLE_ACCOUNTS):
        return None
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    path = Path(named) if named else Path.home() / ".config/gcloud/application_default_credentials.json"
    try:
        return path, str(json.loads(path.read_text()).get("type"))
    except (OSError, ValueError, AttributeError):
        return None


def _check_google() -> None:
    """Refuse what obstore does not know: federated (`external_account`) and impersonated identities.

    Raises:
        CredentialsError: the credentials are of such a type.
    """
    found = google_credentials()
    if found is not None and found[1] not in _GOOGLE_TYPES:
        raise CredentialsError(
            f"gs://: the credentials in {found[0]} ({found[1]}) cannot be used for object stores. Set "
            "GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account"
        )


def _shared_aws_settings() -> dict[str, Any]:
    """Profiles and the region of ~/.aws, which obstore does not read by itself."""
    try:
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session = boto3.Session()
    if session.get_credentials() is None:
        return {}
    region = {"region": session.region_name} if session.region_name else {}
    return {"credential_provider": Boto3CredentialProvider(session), **region}


class FolderTarget:
    """A folder on this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = str(folder)

    def check(self) -> None:
        """See CheckpointTarget."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder):
                pass
        except OSError as error:
            raise InputError(f"{self._folder}: cannot be written: {error.strerror}") from None

    def write(self, content: Checkpoint, parameters: Sequence[Parameter]) -> str:
        """See CheckpointTarget."""
        return str(checkpoint.write(self._folder, content, parameters))

    def read(self) -> Checkpoint:
        """See CheckpointTarget."""
        return checkpoint.read(self._folder)

    def empty(self) -> bool:
        """See CheckpointTarget."""
        return not any(self._folder.glob("step-*"))

    def remove(self, step: int) -> None:
        """See CheckpointTarget. The folder disappears at once, its content after."""
        doomed = self._folder / f".doomed-{step}.{os.getpid()}"
        try:
            (self._folder / f"step-{step}").rename(doomed)
        except FileNotFoundError:
            return
        shutil.rmtree(doomed, ignore_errors=True)


class StoreTarget:
    """A prefix of an object store, `root` being BUCKET/PREFIX in `files`, a file system of fsspec."""

    def __init__(self, where: str, files: Any, root: str) -> None:
        self.where, self._files, self._root = where, files, root

    def check(self) -> None:
        """See CheckpointTarget."""
        name = f"{self._root}/.parcae-{secrets.token_hex(8)}"
        self._explained(self._files.pipe_file, name, b"may Parcae write here?")
        self._explained(self._files.rm_file, name)

    def write(self, content: Checkpoint, parameters: Sequence[Parameter]) -> str:
        """See CheckpointTarget. Needs room for one checkpoint in the folder for temporary files."""
        place = f"{self._root}/step-{content.step}"
        with tempfile.TemporaryDirectory(prefix="parcae-checkpoint-") as scratch:
            path = checkpoint.write(Path(scratch), content, parameters)
            for name in (*FILES, ABOUT):
                self._explained(self._files.put_file, str(path / name), f"{place}/{name}")
        return f"{self.where}/step-{content.step}"

    def read(self) -> Checkpoint:
        """See CheckpointTarget."""
        place = self._root if self._has(self._root) else self._newest()
        with tempfile.TemporaryDirectory(prefix="parcae-checkpoint-") as scratch:
            for name in (ABOUT, *FILES):
                self._explained(self._files.get_file, f"{place}/{name}", f"{scratch}/{name}")
            return checkpoint.read(Path(scratch), self.where)

    def remove(self, step: int) -> None:
        """See CheckpointTarget. Its description goes first, so that what is left is no checkpoint."""
        for name in (ABOUT, *FILES):
            try:
                self._explained(self._files.rm_file, f"{self._root}/step-{step}/{name}")
            except InputError:
                continue

    def empty(self) -> bool:
        """See CheckpointTarget."""
        return not (self._has(self._root) or self._steps())

    def _has(self, place: str) -> bool:
        return bool(self._explained(self._files.exists, f"{place}/{ABOUT}"))

    def _steps(self) -> list[int]:
        """The steps of which something is here, newest first."""
        try:
            found = self._explained(self._files.ls, self._root, detail=False)
        except InputError as error:
            if "NoSuchBucket" in str(error):
                raise
            found = []
        return sorted((int(n) for name in found if (n := _step_of(str(name))).isdigit()), reverse=True)

    def _newest(self) -> str:
        for step in self._steps():
            if self._has(f"{self._root}/step-{step}"):
                return f"{self._root}/step-{step}"
        raise InputError(f"{self.where}: no checkpoint here; give a URL of step-N, or of what holds such")

    def _explained(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The result of `call`, with the store's errors in one line."""
        try:
            return call(*arguments, **options)
        except Exception as error:
            explained = explained_error(self.where, error)
            if explained is error:
                raise
            raise explained from None


def explained_error(where: str, error: Exception) -> Exception:
    """A store's error in one line: InputError, CredentialsError or StoreError; another error as it is."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{where}: {_said(error, 'no such bucket or object')}")
    if type(error).__module__.split(".")[0] not in ("obstore", "botocore", "builtins", "google"):
        return error
    said = _said(error, type(error).__name__)
    if any(word in str(error) for word in _NOT_LET_IN) or isinstance(error, PermissionError):
        return CredentialsError(f"{where}: the store does not let us in: {said}; sign in as its own tools do")
    if "NoSuchBucket" in str(error):
        return InputError(f"{where}: no such bucket")
    return StoreError(f"{where}: {said}")


# How obstore says that there are no credentials (it asks the metadata service last), or none that count.
_NOT_LET_IN = (
    "169.254.169.254",
    "metadata.google.internal",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "Unauthenticated",
    "PermissionDenied",
    "ExpiredToken",
    "401 Unauthorized",
    "403 Forbidden",
)


def _said(error: Exception, otherwise: str) -> str:
    """What an error says, in short."""
    text = str(error)
    if "NoSuchBucket" in text or "specified bucket does not exist" in text:
        return "no such bucket"
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        return "no credentials were found"
    first = text.partition("Debug source")[0].split("<?xml")[0].strip()
    return " ".join(first.split())[:200] or otherwise


def _step_of(name: str) -> str:
    """N of PREFIX/step-N."""
    last = name.rstrip("/").rpartition("/")[2]
    return last[5:] if last.startswith("step-") else ""
