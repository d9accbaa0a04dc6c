"""`parcae init` writes files that the other commands take, and `launch --job` takes options from one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.hosts.inventory import read_inventory
from parcae_cli.app import load
from parcae_cli.catalogue import load_model
from tests.cli.conftest import Done

Run = Callable[..., Done]


def test_what_init_writes_is_good_as_it_is(parcae: Run) -> None:
    """The job is launched, the model loaded, the hosts are read; nothing is overwritten unasked."""
    for kind in ("job", "model", "hosts"):
        assert parcae("init", "--kind", kind).code == 0
        again = parcae("init", "--kind", kind)
        assert again.code == 2 and "--force" in again.err
        assert parcae("init", "--kind", kind, "--force").code == 0
    plan = parcae("launch", "--job", "parcae.toml", "--dry-run", "--json")
    assert plan.code == 0 and json.loads(plan.out)["nodes"] == 4
    assert load_model("model.toml").name == "my-gpt"
    assert len(read_inventory(Path("hosts.toml"))) == 2
    assert parcae("init", "-").out == Path("parcae.toml").read_text()


def test_the_job_template_names_every_option_of_a_job(parcae: Run) -> None:
    """Each key in it, commented ones too, is known to `launch`, and none is missing."""
    keys = set(re.findall(r"^(?:# )?(\w+) = ", parcae("init", "-").out, re.MULTILINE))
    options = {max(option.opts, key=len).lstrip("-").replace("-", "_") for option in load("launch").params}
    missing = options - keys - {"job", "yes", "detach", "dry_run", "json", "help"}
    assert (keys - options, missing) == (set(), set())


def test_options_of_the_command_line_win_over_the_file(parcae: Run) -> None:
    """Model and options come from the file where they are not given; dashes are as good as underscores."""
    Path("job.toml").write_text('model = "gpt-tiny"\nnodes = 5\nbackup-every = 3\nspeed = 2\n')
    plan = json.loads(parcae("launch", "--job", "job.toml", "--nodes", 6, "--dry-run", "--json").out)
    assert (plan["model"], plan["nodes"], plan["backup_every"], plan["speed"]) == ("gpt-tiny", 6, 3, 2.0)
    plan = json.loads(parcae("launch", "gpt-30m", "--job", "job.toml", "--dry-run", "--json").out)
    assert (plan["model"], plan["nodes"]) == ("gpt-30m", 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes = [", "is not TOML"),
        ('nodes = "x"', "job.toml: nodes: must be a whole number, not 'x'"),
        ("nodes = true", "nodes: must be a whole number"),
        ("speed = []", "speed: must be a number"),
        ("data = [3]", "data: must be a text, not 3"),
        ("[gpt]", "job.toml: gpt: unknown key"),
        ("yes = true", "job.toml: yes: unknown key"),
        ("nodes = 0", "--nodes"),
        ('from = "none"', "--from none: no such folder"),
    ],
)
def test_a_wrong_job_file_is_refused_by_its_key(text: str, said: str, parcae: Run) -> None:
    """One line and exit code 2."""
    Path("job.toml").write_text(text)
    done = parcae("launch", "gpt-tiny", "--job", "job.toml", "--dry-run")
    assert done.code == 2 and said in done.err and done.err.count("\n") == 1


def test_files_that_cannot_be_are_refused(parcae: Run) -> None:
    """Folders, missing ones, unknown kinds, a file without a model."""
    assert "parcae init none.toml" in parcae("launch", "--job", "none.toml").err
    assert "cannot be read" in parcae("launch", "--job", ".").err
    Path("empty.toml").touch()
    assert "MODEL" in parcae("launch", "--job", "empty.toml").err
    assert "is a folder" in parcae("init", ".").err
    assert "there is no folder" in parcae("init", "no/such.toml").err
    assert "There are: job, model, hosts" in parcae("init", "--kind", "x").err
