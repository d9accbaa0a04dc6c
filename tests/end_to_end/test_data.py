"""`--data` on machines that do not have it: sent to them, or fetched by them, the job is the very same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from parcae_cli.catalogue import load_fleet
from runtime.control.job.objects import objects_of
from runtime.planning.errors import InputError
from tests.cloud.aws.conftest import ec2, endpoint  # noqa: F401
from tests.cloud.aws.front import Front
from tests.cloud.gcp.conftest import compute  # noqa: F401
from tests.cloud.gcp.fake_compute import MACHINE_TYPE, FakeCompute
from tests.control.object_store import SIGNED_IN, client_of, s3_server
from tests.end_to_end.gcp_machines import GcpMachines
from tests.end_to_end.harness import Finished, train
from tests.end_to_end.machines import Machines, zygote
from tests.end_to_end.sshd import rack

pytestmark = pytest.mark.timeout(150)
STEPS, NODES = 16, 2
TEXTS = {"b.txt": b"Arma virumque cano, Troiae qui primus ab oris. " * 400, "c.txt": b"Italiam. " * 2000}
TIMES = {
    "retry_s": 0.2, "grace_s": 3, "describe_s": 0.3, "notice_poll_s": 0.2, "cool_down_s": 1, "boot_s": 60,
    "lease_s": 20, "close_s": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """What is trained on."""
    folder = tmp_path_factory.mktemp("texts")
    for name, text in TEXTS.items():
        (folder / name).write_bytes(text)
    return tuple(folder / name for name in TEXTS)


@pytest.fixture(scope="module")
def local(files: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The run that all others must equal: on this machine, which has the files."""
    return train(tmp_path_factory.mktemp("local"), "local", nodes=NODES, steps=STEPS, corpus=files)


@pytest.fixture(params=["hosts", "aws", "gcp"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, Any], list[Path]]]:
    """Each in turn: its name, the fleet's settings, and a list that gets the home of each machine."""
    shared = {"device": "model", "python": sys.executable, "packages": [], "times": TIMES}
    if request.param == "hosts":
        with rack(tmp_path / "rack") as machines:
            homes = [machines.add(name).home for name in ("alpha", "beta")]
            yield "hosts", {"hosts": str(machines.hosts_toml())}, homes
    elif request.param == "aws":
        front: Front = request.getfixturevalue("ec2")
        there = Machines(front, tmp_path / "machines")
        there.zygote = zygote()
        own = {"instance_types": ["g4dn.xlarge"], "ssh_port": there.ssh_port}
        yield "aws", {**load_fleet("aws"), **shared, **own}, [tmp_path / "machines"]
        assert there.close() == []
    else:
        fake: FakeCompute = request.getfixturevalue("compute")
        rented = GcpMachines(fake, tmp_path / "machines")
        rented.zygote = zygote()
        yield "gcp", {**load_fleet("gcp"), **shared, "machine_types": [MACHINE_TYPE]}, [tmp_path / "machines"]
        assert rented.close() == []


@pytest.fixture
def elsewhere(files: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[Path, ...]:
    """The same files under names that lead to them in this process only, as if nodes were other machines."""
    monkeypatch.chdir(files[0].parent)
    return tuple(Path("/proc/self/cwd") / path.name for path in files)


def test_files_are_sent_to_nodes(
    local: Finished,
    cloud: tuple[str, dict[str, Any], list[Path]],
    elsewhere: tuple[Path, ...],
    tmp_path: Path,
) -> None:
    """Every node gets them once, a worker that is started again finds them, and the weights are the same.

    On hosts one worker dies on the way.
    """
    name, fleet, homes = cloud
    faults = ({"node": "alpha", "step": 5, "point": "reduce"},) if name == "hosts" else ()
    run = train(
        tmp_path, "sent", cloud=name, fleet=fleet, nodes=NODES, steps=STEPS, corpus=elsewhere, faults=faults
    )
    assert run.result.state == "done", run.result.why
    assert run.losses == local.losses
    assert run.result.weights_sha256 == local.result.weights_sha256
    told = [event for event in run.events if event["kind"] == "data"]
    assert len(told) == NODES
    assert all(event["text"].endswith("has the data") and " MB sent in " in event["why"] for event in told)
    if name == "hosts":
        kept = [path for home in homes for path in home.glob(".cache/parcae/data/*/00000-b.txt")]
        assert [path.read_bytes() for path in kept] == [TEXTS["b.txt"]] * NODES
        assert any(event["kind"] == "lost" for event in run.events)


def test_objects_are_fetched_by_nodes(
    local: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From S3, once for all local nodes, which share a folder: the same weights as from files."""
    with s3_server() as url:
        for key, text in TEXTS.items():
            client_of(url).put_object(Bucket="safe", Key=f"texts/{key}", Body=text)
        for key, value in {"AWS_ENDPOINT_URL": url, **SIGNED_IN}.items():
            monkeypatch.setenv(key, value)
        objects = tuple(asdict(file) for file in objects_of(["s3://safe/texts/*.txt"]))
        run = train(tmp_path, "fetched", nodes=NODES, steps=STEPS, objects=objects)
    assert run.result.state == "done", run.result.why
    assert run.losses == local.losses
    assert run.result.weights_sha256 == local.result.weights_sha256
    (told,) = [event for event in run.events if event["kind"] == "data"]
    assert " MB fetched in " in told["why"]


def test_data_that_fills_the_disk_is_refused_before_anything_is_rented(
    compute: FakeCompute,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The message names the key of the fleet's file and what to write there."""
    row = {"name": "x.bin", "size_bytes": 60 * 10**9, "url": "s3://safe/x.bin"}
    fleet = {**load_fleet("gcp"), "device": "model", "machine_types": [MACHINE_TYPE]}
    with pytest.raises(InputError, match=r"60\.0 GB are more than half .* set disk_gb .* to 121 or more"):
        train(tmp_path, "big", cloud="gcp", fleet=fleet, nodes=NODES, objects=(row,))
    assert compute.live() == []
