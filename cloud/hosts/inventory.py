"""hosts.toml: which machines there are, and how each is reached and used.

```
ssh_config = "ssh_config"     # default: ~/.ssh/config

[defaults]                    # any key of a host but name and address
python = "/opt/train/bin/python"

[[host]]
address = "alpha"             # as one would give it to ssh: a name, an address, an alias of the configuration
```
"""

from __future__ import annotations

import re
import tomllib
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloud.types import OwnSshTarget, Pool

METADATA_FLAVOURS = ("aws", "gcp")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOP = ("ssh_config", "defaults", "host")
_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "address": str,
    "port": int,
    "user": str,
    "python": str,
    "folder": str,
    "internal_address": str,
    "zone": str,
    "usd_per_hour": (int, float),
    "gpus": int,
    "metadata": str,
    "metadata_flavor": str,
    "notice_s": (int, float),
    "environment": dict,
}


class InventoryError(ValueError):
    """A hosts.toml that cannot be used. The message names the file and the key, and says what is wanted."""


@dataclass(frozen=True)
class Host:
    """One machine.

    `python` is its interpreter, one that has torch; `folder` is where our files go there (`~/` is its user's
    home). `internal_address` is how the other hosts reach it; None: the address at which its sshd was
    reached, which is the right one behind a jump host too. `metadata` is the URL of a service that announces
    the machine's end, in the words of a cloud (`metadata_flavor`); where these name no time, as `gcp`'s do,
    the end comes `notice_s` after. `environment` is set for its workers.
    `gpus` is how many it has, None if the file does not say.
    """

    name: str
    target: OwnSshTarget
    python: str = "python3"
    folder: str = "~/.cache/parcae"
    internal_address: str | None = None
    zone: str = "hosts"
    usd_per_hour: float = 0.0
    gpus: int | None = None
    metadata: str | None = None
    metadata_flavor: str = "aws"
    notice_s: float = 30.0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def pool(self) -> Pool:
        """The machine as capacity: what it costs is what it costs, on demand too."""
        return Pool(self.zone, "host", self.gpus or 1, self.usd_per_hour, self.usd_per_hour)


def read_inventory(path: Path) -> tuple[Host, ...]:
    """The hosts of a file, in its order.

    Raises:
        InventoryError: it cannot be read, is not TOML, or says something wrong.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InventoryError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InventoryError(f"{path}: is not TOML: {error}") from error
    return parse_inventory(table, str(path))


def parse_inventory(table: Mapping[str, Any], name: str) -> tuple[Host, ...]:
    """The hosts of a parsed file; `name` is the file's, for messages and for paths relative to it.

    Raises:
        InventoryError: an unknown or missing key, a value of the wrong kind, or two hosts of one name.
    """
    _refuse_unknown(table, _TOP, name)
    config = table.get("ssh_config")
    if config is not None:
        if not isinstance(config, str):
            raise InventoryError(f"{name}: ssh_config: give the path of a file")
        config = str((Path(name).parent / Path(config).expanduser()).resolve())
        if not Path(config).is_file():
            raise InventoryError(f"{name}: ssh_config: there is no file {config}")
    defaults = table.get("defaults", {})
    if not isinstance(defaults, dict):
        raise InventoryError(f"{name}: defaults: write it as a table, [defaults]")
    shared = [key for key in _TYPES if key not in ("name", "address")]
    _refuse_unknown(defaults, shared, f"{name}: [defaults]")
    entries = table.get("host", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InventoryError(f"{name}: host: write each one as a table, [[host]]")
    if not entries:
        raise InventoryError(f'{name}: names no host; add [[host]] with address = "..."')
    hosts = []
    for number, entry in enumerate(entries, 1):
        where = f"{name}: host {number}"
        _refuse_unknown(entry, _TYPES, where)
        hosts.append(_host({**defaults, **entry}, config, where))
    names = [host.name for host in hosts]
    for number, host in enumerate(hosts, 1):
        if host.name in names[: number - 1]:
            raise InventoryError(
                f"{name}: host {number}: name: {host.name!r} is taken by another host; give each its own"
            )
    return tuple(hosts)


def _refuse_unknown(table: Mapping[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            raise InventoryError(f"{where}: {key}: no such key; there are {', '.join(known)}")


def _host(entry: Mapping[str, Any], config: str | None, where: str) -> Host:
    for key, value in entry.items():
        wanted = _TYPES[key]
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise InventoryError(f"{where}: {key}: {value!r} is not {_in_words(wanted)}")
        if isinstance(value, str) and (not value or not value.isprintable()):
            raise InventoryError(f"{where}: {key}: give it a value, or leave the key out")
    if "address" not in entry:
        raise InventoryError(f"{where}: address: is missing; it says how ssh would reach the host")
    address = entry["address"]
    if address.startswith("-") or any(letter.isspace() for letter in address):
        raise InventoryError(f"{where}: address: {address!r} is no address")
    name = entry.get("name", address)
    if not _NAME.fullmatch(name):
        raise InventoryError(
            f"{where}: name: {name!r} cannot name a node; use letters, digits, dots, dashes and underscores"
        )
    where = f"{where} ({name})"
    port = entry.get("port")
    if port is not None and not 1 <= port <= 65535:
        raise InventoryError(f"{where}: port: {port} is not 1 to 65535")
    price = float(entry.get("usd_per_hour", 0.0))
    if not 0 <= price < float("inf"):
        raise InventoryError(f"{where}: usd_per_hour: {price} is not a price")
    if entry.get("gpus", 1) < 1:
        raise InventoryError(f"{where}: gpus: {entry['gpus']} is not 1 or more; the CPU counts as one")
    _check_metadata(entry, where)
    environment = entry.get("environment", {})
    for key, value in environment.items():
        if not _VARIABLE.fullmatch(key) or not isinstance(value, str):
            raise InventoryError(f'{where}: environment: {key} = {value!r} is not NAME = "text"')
    optional = (
        "python", "folder", "internal_address", "zone", "gpus", "metadata", "metadata_flavor", "notice_s"
    )  # fmt: skip
    return Host(
        name=name,
        target=OwnSshTarget(address, port, entry.get("user"), config),
        usd_per_hour=price,
        environment=environment,
        **{key: entry[key] for key in optional if key in entry},
    )


def _check_metadata(entry: Mapping[str, Any], where: str) -> None:
    flavor = entry.get("metadata_flavor", "aws")
    if flavor not in METADATA_FLAVOURS:
        known = ", ".join(METADATA_FLAVOURS)
        raise InventoryError(f"{where}: metadata_flavor: {flavor!r} is none of {known}")
    parts = urllib.parse.urlsplit(entry.get("metadata", "http://host"))
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
        raise InventoryError(f"{where}: metadata: {entry['metadata']!r} is not like http://169.254.169.254")
    notice_s = entry.get("notice_s", 30.0)
    if not 0 < notice_s < float("inf"):
        raise InventoryError(f"{where}: notice_s: {notice_s} is not a number of seconds above 0")
    if "notice_s" in entry and "metadata" in entry and flavor == "aws":
        raise InventoryError(
            f'{where}: notice_s: is for metadata_flavor = "gcp"; in the words of aws a notice names its time'
        )


def _in_words(kind: type | tuple[type, ...]) -> str:
    return {str: "text", int: "a whole number", dict: "a table"}.get(kind, "a number")  # type: ignore[arg-type]
