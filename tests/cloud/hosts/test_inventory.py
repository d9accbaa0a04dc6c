"""hosts.toml: what a good one says, and how a bad one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud.hosts import inventory
from cloud.hosts.inventory import InventoryError, read_inventory
from cloud.types import OwnSshTarget

GOOD = """
ssh_config = "config"
[defaults]
python = "/opt/train/bin/python"
usd_per_hour = 0.5
[[host]]
address = "alpha"
[[host]]
name = "b1"
address = "10.0.0.7"
port = 2222
user = "train"
python = "python3.12"
internal_address = "192.168.0.7"
metadata = "http://169.254.169.254"
metadata_flavor = "gcp"
notice_s = 120
environment = { CUDA_VISIBLE_DEVICES = "1" }
gpus = 2
"""


def write(folder: Path, text: str) -> Path:
    """The file, beside an SSH configuration."""
    (folder / "config").write_text("")
    path = folder / "hosts.toml"
    path.write_text(text)
    return path


def test_defaults_hold_where_a_host_says_nothing(tmp_path: Path) -> None:
    """A host is named after its address; its own keys go before the defaults."""
    alpha, b1 = read_inventory(write(tmp_path, GOOD))
    config = str(tmp_path / "config")
    assert (alpha.name, alpha.target) == ("alpha", OwnSshTarget("alpha", config=config))
    assert (alpha.python, alpha.pool.spot_usd_per_hour) == ("/opt/train/bin/python", 0.5)
    assert b1.target == OwnSshTarget("10.0.0.7", 2222, "train", config)
    assert (b1.python, b1.internal_address) == ("python3.12", "192.168.0.7")
    assert (b1.metadata, b1.metadata_flavor, b1.notice_s) == ("http://169.254.169.254", "gcp", 120)
    assert b1.environment == {"CUDA_VISIBLE_DEVICES": "1"}
    assert (alpha.gpus, alpha.pool.gpus, b1.gpus, b1.pool.gpus) == (None, 1, 2, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no host"),
        ("[[host]]\n", "host 1: address: is missing"),
        ("[[host]]\naddress = 7\n", "host 1: address: 7 is not text"),
        ("[[host]]\naddress = ''\n", "host 1: address: give it a value"),
        ("[[host]]\naddress = '-oProxyCommand=x'\n", "host 1: address: '-oProxyCommand=x' is no address"),
        ("[[host]]\naddress = 'a'\ngpus = 0\n", "host 1 (a): gpus: 0 is not 1 or more"),
        ("[[host]]\naddress = 'a'\nport = 0\n", "host 1 (a): port: 0 is not 1 to 65535"),
        ("[[host]]\naddress = 'a'\nport = true\n", "host 1: port: True is not a whole number"),
        ("[[host]]\naddress = 'a'\npyhton = 'x'\n", "host 1: pyhton: no such key; there are name"),
        ("[[host]]\naddress = 'a'\n[[host]]\naddress = 'a'\n", "host 2: name: 'a' is taken"),
        ("[[host]]\naddress = 'a/b'\n", "host 1: name: 'a/b' cannot name a node"),
        ("[[host]]\naddress = 'a'\nusd_per_hour = -1\n", "host 1 (a): usd_per_hour: -1.0 is not a price"),
        ("[[host]]\naddress = 'a'\nmetadata = 'ftp://x'\n", "host 1 (a): metadata: 'ftp://x' is not like"),
        ("[[host]]\naddress = 'a'\nnotice_s = 0\n", "host 1 (a): notice_s: 0 is not a number of seconds"),
        ("[[host]]\naddress = 'a'\nnotice_s = inf\n", "host 1 (a): notice_s: inf is not a number of"),
        ("[[host]]\naddress = 'a'\nnotice_s = '9'\n", "host 1: notice_s: '9' is not a number"),
        (
            "[[host]]\naddress = 'a'\nmetadata = 'http://x'\nnotice_s = 9\n",
            "(a): notice_s: is for metadata_f",
        ),
        ("[[host]]\naddress = 'a'\nmetadata_flavor = 'x'\n", "metadata_flavor: 'x' is none of aws, gcp"),
        ("[[host]]\naddress = 'a'\nenvironment = {A = 1}\n", "environment: A = 1 is not NAME"),
        ("[defaults]\nname = 'a'\n", "[defaults]: name: no such key"),
        ("defaults = 1\n", "defaults: write it as a table"),
        ("host = 1\n", "host: write each one as a table"),
        ("hosts = 1\n", "hosts: no such key; there are ssh_config, defaults, host"),
        ("ssh_config = 'none-such'\n", "ssh_config: there is no file"),
        ("[[host\n", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    """Every message begins with the file and names the host and the key."""
    path = write(tmp_path, text)
    with pytest.raises(InventoryError) as caught:
        read_inventory(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


@pytest.mark.parametrize("key", inventory._TYPES)
def test_every_key_is_checked(tmp_path: Path, key: str) -> None:
    """One of the wrong kind is refused by name; in [defaults] as well, where it may stand."""
    path = write(tmp_path, f"[[host]]\naddress = 'a'\n[[host]]\n{key} = []\n")
    with pytest.raises(InventoryError, match=rf"^{path}: host 2: {key}: \[\] is not "):
        read_inventory(path)
    if key not in ("name", "address"):
        path = write(tmp_path, f"[defaults]\n{key} = []\n[[host]]\naddress = 'a'\n")
        with pytest.raises(InventoryError, match=rf"^{path}: host 1: {key}: \[\] is not "):
            read_inventory(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """It is named, with the reason."""
    with pytest.raises(InventoryError, match=r"no-such\.toml: cannot be read: No such file"):
        read_inventory(tmp_path / "no-such.toml")
