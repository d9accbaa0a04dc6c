"""The script for a real account: its calls are ones that AWS knows, and whatever happens it cleans up."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "aws_rehearsal.sh"
GLOBAL = ("query", "output")  # options of the aws command itself
# Each writes down how it was called. `aws` answers in a word, `parcae` by files that the test has put there.
STUBS = {
    "aws": """#!/bin/bash
printf '%s\\0' "$@" >"calls/$(ls calls | wc -l | xargs printf %03d)"
case "$1 $2" in
  "sts get-caller-identity") echo arn:aws-us-gov:iam::123456789012:user/me ;;
  "fis create-experiment-template") [ ! -e no-fis ] || exit 254; echo EXT1 ;;
  "fis start-experiment") touch interrupted; echo EXP1 ;;
  "fis get-experiment") echo completed ;;
  "ec2 describe-volumes") [ ! -e forgotten ] || echo vol-1 ;;
esac
""",
    "parcae": """#!/bin/bash
echo "$1" >>words
case "$1" in
  status) if [ -e interrupted ]; then cat after.json; else cat before.json; fi ;;
  logs) cat events.json ;;
esac
""",
    "sleep": "#!/bin/sh\n",
}


def status(state: str, step: int, nodes: int) -> str:
    """What `parcae status --json` says."""
    ones = [{"name": f"i-{number}", "position": {"pipeline": 0, "stage": number}} for number in range(nodes)]
    return json.dumps({"state": state, "step": step, "nodes": ones, "migrations": []})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with all that the script finds: a job in which everything goes well."""
    for name, text in STUBS.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "calls").mkdir()
    (tmp_path / "before.json").write_text(status("running", 5, 3))
    # Steps go on from one look to the next.
    (tmp_path / "bin" / "parcae").write_text(
        STUBS["parcae"].replace("cat after.json", "date +%s%N | xargs -I% sed s/-1/%/ after.json")
    )
    (tmp_path / "after.json").write_text(status("running", -1, 3))
    rows = [("migration", "3 nodes"), ("notice", "i-0 will be taken"), ("migration", ""), ("lost", "i-0")]
    events = [{"kind": kind, "text": text} for kind, text in rows]
    (tmp_path / "events.json").write_text(json.dumps({"events": events}))
    return tmp_path


def rehearse(place: Path, answer: str = "y") -> tuple[int, str]:
    """Run it there; exit code and all that it said."""
    environment = {**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(place)}
    environment |= {
        "AWS_REGION": "us-gov-west-1",
        "FIS_ROLE_ARN": "arn:aws-us-gov:iam::123456789012:role/fis",
    }
    done = subprocess.run(
        ["bash", str(SCRIPT)], input=f"{answer}\n", env=environment, cwd=place, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def calls(place: Path) -> list[list[str]]:
    """Of the aws command, in order."""
    return [path.read_text().split("\0")[:-1] for path in sorted((place / "calls").iterdir())]


def checked(words: list[str]) -> str:
    """`service operation`, after its options were held against botocore's model of the service."""
    import botocore.session
    from botocore import xform_name
    from botocore.validate import ParamValidator

    service, operation, *options = words
    model = botocore.session.get_session().get_service_model(service)
    (name,) = [one for one in model.operation_names if xform_name(one, "-") == operation]
    shape = model.operation_model(name).input_shape
    members = {xform_name(member, "-"): member for member in (shape.members if shape else {})}
    request: dict[str, Any] = {}
    for option, value in zip(options[::2], options[1::2], strict=True):
        assert option.startswith("--")
        if option[2:] in GLOBAL:
            continue
        member = members[option[2:]]
        plain = shape.members[member].type_name == "string"
        request[member] = value if plain else json.loads(value)
    if shape is not None:
        report = ParamValidator().validate(request, shape)
        assert not report.has_errors(), report.generate_report()
    return f"{service} {operation}"


def test_every_call_of_the_rehearsal_is_one_that_aws_knows(place: Path) -> None:
    """Operations, options and what is in them, by botocore's models; at the end all is taken back."""
    code, said = rehearse(place)
    assert code == 0, said
    assert "nothing is left" in said
    made = [checked(words) for words in calls(place)]
    assert made[:3] == [
        "sts get-caller-identity", "fis create-experiment-template", "fis start-experiment",
    ]  # fmt: skip
    assert made[3:] == [
        "fis get-experiment", "fis stop-experiment", "fis delete-experiment-template",
        "ec2 describe-instances", "ec2 describe-volumes", "ec2 describe-launch-templates",
    ]  # fmt: skip
    template = " ".join(calls(place)[1])
    assert "arn:aws-us-gov:ec2:us-gov-west-1:123456789012:instance/i-0" in template
    assert (place / "words").read_text().split()[-2:] == ["down", "gc"]
    assert list(place.glob("tmp.*")) == []


@pytest.mark.parametrize(
    ("trouble", "expected", "fis"),
    [("no-fis", 254, 0), ("ended", 1, 0), ("silent", 1, 2), ("forgotten", 5, 2)],
)
def test_a_rehearsal_that_goes_wrong_cleans_up_and_says_so(
    place: Path, trouble: str, expected: int, fis: int
) -> None:
    """FIS refuses, the job ends before it trains, no notice is heard, or a disk is left: never code 0."""
    if trouble == "ended":
        (place / "before.json").write_text(status("failed", 0, 0))
    elif trouble == "silent":
        (place / "events.json").write_text('{"events": []}')
    else:
        (place / trouble).touch()
    code, said = rehearse(place)
    assert code == expected, said
    assert (place / "words").read_text().split()[-2:] == ["down", "gc"]
    made = [" ".join(words[:2]) for words in calls(place)]
    assert sum(one in ("fis stop-experiment", "fis delete-experiment-template") for one in made) == fis
    assert made[-3:] == ["ec2 describe-instances", "ec2 describe-volumes", "ec2 describe-launch-templates"]
    assert ("LEFT BEHIND: vol-1" in said) is (trouble == "forgotten")


def test_who_does_not_agree_spends_nothing(place: Path) -> None:
    """The plan is shown, and that is all."""
    code, _ = rehearse(place, answer="n")
    assert (code, calls(place), (place / "words").read_text().split()) == (1, [], ["launch"])
