"""The way to an anchor: single commands of our own over SSH, with JSON in and out."""

from __future__ import annotations

import asyncio
import json
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cloud.anchor import AnchorRecord
from cloud.provider import CloudError
from runtime.control.fleet import ssh
from runtime.control.fleet.deploy import check_booted, push_sources

# Below the home of the anchor's user: the PARCAE_HOME of the launcher there.
HOME = "parcae"
ANSWER_TIMEOUT_S = 30.0
_RETRY_S = 0.5


class AnchorLostError(CloudError):
    """The anchor does not answer."""


class AnchorRefusedError(CloudError):
    """The anchor answered, and could not do what it was asked. The message is its own."""


def bring_up(record: AnchorRecord, within_s: float) -> AnchorRecord:
    """Wait for its bootstrap and bring our sources there; the record with their folder.

    Raises:
        AnchorRefusedError: its bootstrap failed.
        AnchorLostError: it was not ready in time.
    """
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            return asyncio.run(_bring_up(record))
        except ssh.BrokenNodeError as error:
            raise AnchorRefusedError(f"anchor {record.id}: {error}") from error
        except ssh.SshError as error:
            if time.monotonic() > deadline_s:
                raise AnchorLostError(
                    f"anchor {record.id} is not ready after {within_s:.0f} s: {error}"
                ) from error
        time.sleep(_RETRY_S)


async def _bring_up(record: AnchorRecord) -> AnchorRecord:
    connection = await ssh.connect(record.target)
    try:
        await check_booted(connection, record.id, record.boot)
        return replace(record, sources=await push_sources(connection, record.python))
    finally:
        connection.close()


def ask(
    record: AnchorRecord,
    words: str,
    told: Mapping[str, Any] | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> dict[str, Any]:
    """Run `python -m parcae_cli.anchor WORDS` there, and return the object that it prints.

    Raises:
        AnchorLostError: it cannot be reached.
        AnchorRefusedError: the command failed.
    """
    command = f"{_python(record)} -P -m parcae_cli.anchor {words}"
    reply = _run(record, command, json.dumps(told or {}).encode(), timeout_s)
    if reply.status:
        said = (reply.error.strip() or reply.output.strip()).splitlines()
        raise AnchorRefusedError(f"anchor {record.id}: {said[-1] if said else f'exit code {reply.status}'}")
    answer: dict[str, Any] = json.loads(reply.output)
    return answer


def begin(record: AnchorRecord, words: str) -> None:
    """Start `python -m parcae_cli.anchor WORDS` there; it goes on when this connection ends.

    Raises:
        AnchorLostError: it cannot be reached.
    """
    command = (
        f"nohup {_python(record)} -P -m parcae_cli.anchor {words}"
        f' >>"$HOME/{HOME}/launcher.log" 2>&1 </dev/null &'
    )
    _run(record, command, b"", ANSWER_TIMEOUT_S)


def _python(record: AnchorRecord) -> str:
    folder = f'PYTHONPATH="$HOME/{record.sources}" PARCAE_HOME="$HOME/{HOME}"'
    return f"env {folder} PARCAE_LEASE_FILE={record.lease} {shlex.quote(record.python)}"


def _run(record: AnchorRecord, command: str, data: bytes, timeout_s: float) -> ssh.CommandReply:
    async def run() -> ssh.CommandReply:
        connection = await ssh.connect(record.target)
        try:
            return await ssh.run(connection, command, timeout_s, data)
        finally:
            connection.close()

    try:
        return asyncio.run(run())
    except ssh.SshError as error:
        raise AnchorLostError(f"anchor {record.id} does not answer: {error}") from error
