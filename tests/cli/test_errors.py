"""Wrong input gives one line that says what and where, and an exit code; never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.gcp.api import ENDPOINT
from cloud.provider import (
    CloudError,
    CredentialsError,
    MaybeStillRunningError,
    NoCapacityError,
    QuotaError,
)
from parcae_cli.errors import FailedError, Interrupted, describe
from runtime.control.job.journal import Journal
from runtime.planning.errors import InputError
from tests.cli.conftest import Done
from tests.cli.picture import write_job

Run = Callable[..., Done]


def is_one_line(done: Done, *words: str) -> bool:
    """Whether stderr is one line that begins as errors do and has all the words, and stdout is empty."""
    said = done.err.strip()
    assert not done.out, done.out
    assert "Traceback" not in said
    assert said.startswith("parcae: error: ")
    assert "\n" not in said
    assert [word for word in words if word not in said] == [], said
    return True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["launch", "gpt9"], ["gpt9", "gpt-tiny", "gpt3-6b"]),
        (["launch", "mine.toml"], ["mine.toml", "no such file"]),
        (["launch", "../gpt-tiny"], ["../gpt-tiny"]),
        (["launch", "vgg19"], ["vgg19", "replayed, not trained", "parcae models"]),
        (["launch", "gpt-tiny", "--nodes", "0"], ["--nodes", "parcae launch --help"]),
        (["launch", "gpt-tiny", "--nodes", "many"], ["--nodes"]),
        (["launch", "gpt-tiny", "--steps", "0"], ["--steps"]),
        (["launch", "gpt-tiny", "--speed", "0"], ["--speed", "above 0"]),
        (["launch", "gpt-tiny", "--speed", "nan"], ["--speed", "nan is not a finite number"]),
        (["launch", "gpt-tiny", "--notice", "inf"], ["--notice", "inf is not a finite number"]),
        (["replay", "trace.csv", "--interval", "inf"], ["--interval", "inf is not a finite number"]),
        (["resume", "job", "--budget", "nan"], ["--budget", "nan is not a finite number"]),
        (["launch", "gpt-tiny", "--budget", "-1"], ["--budget", "above 0"]),
        (["launch", "gpt-tiny", "--notice", "-1"], ["--notice"]),
        (["launch", "gpt-tiny", "--eval-every", "-1"], ["--eval-every"]),
        (["models", "gpt9"], ["gpt9", "gpt-tiny"]),
        (["launch", "gpt-tiny", "--policy", "ideal"], ["--policy", "reactive", "parcae replay"]),
        (
            ["launch", "gpt-tiny", "--from", ".", "--backup", "none"],
            ["--backup none", "--from", "Leave out --backup"],
        ),
        (
            ["launch", "gpt-tiny", "--policy", "checkpoint", "--backup", "none"],
            ["--backup none", "--policy checkpoint", "Leave out --backup"],
        ),
        (["launch", "gpt-tiny", "--policy", "redundancy", "--gpus-per-node", "2"], ["--policy redundancy"]),
        (["launch", "gpt-tiny", "--policy", "redundancy", "--nodes", "2"], ["two stages", "more --nodes"]),
        (["launch", "gpt-tiny", "--cloud", "azure"], ["azure", "local"]),
        (["launch", "gpt-tiny", "--cloud", "aws"], ["--cloud aws spends money", "--dry-run"]),
        (["launch", "gpt-tiny", "--fleet", "x.toml"], ["--fleet", "local has no such settings"]),
        (["launch", "gpt-tiny", "--cloud", "gcp"], ["--cloud gcp spends money", "--dry-run"]),
        (["launch", "gpt-tiny", "--cloud", "gcp", "--region", "a,b"], ["gcp takes one region"]),
        (["launch", "gpt-tiny", "--cloud", "gcp", "--hosts", "x.toml"], ["--cloud hosts and --hosts FILE"]),
        (["launch", "gpt-tiny", "--cloud", "gcp", "--trace", "x.csv"], ["--trace", "gcp decides by itself"]),
        (["launch", "gpt-tiny", "--cloud", "gcp", "--fleet", "no.toml"], ["no.toml"]),
        (["launch", "gpt-tiny", "--cloud", "hosts", "--region", "a"], ["--hosts FILE"]),
        (["launch", "gpt-tiny", "--cloud", "hosts"], ["--hosts FILE"]),
        (["launch", "gpt-tiny", "--hosts", "x.toml"], ["--cloud hosts"]),
        (["launch", "gpt-tiny", "--cloud", "hosts", "--hosts", "x.toml"], ["x.toml: cannot be read"]),
        (["launch", "gpt-tiny", "--trace", "none.csv"], ["none.csv", "no such file"]),
        (["launch", "gpt-tiny", "--data", "none/*.txt"], ["none/*.txt", "matches no file"]),
        (["launch", "gpt-tiny", "--name", "a/b"], ["a/b", "cannot name a job"]),
        (["launch"], ["MODEL", "parcae launch --help"]),
        (["lanch"], ["lanch", "Did you mean 'launch'"]),
        (["status", "--twice"], ["--twice", "parcae status --help"]),
        (["status", "ghost"], ["ghost", "no jobs"]),
        (["logs"], ["no jobs"]),
        (["down", "ghost"], ["ghost"]),
        (["down", "a", "--all"], ["--all", "not both"]),
    ],
)
def test_wrong_arguments_are_refused_with_code_2(parcae: Run, arguments: list[str], words: list[str]) -> None:
    """Each kind of wrong argument names itself and the way out."""
    done = parcae(*arguments)
    assert done.code == 2
    assert is_one_line(done, *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("time_s,event,instance\n", []),
        ("time_s,event,instance\n0,add,a\n60,remove,a\n30,add,b\n", ["4"]),
        ("time_s,event,instance\n0,add,a\n60,remove,b\n", ["3", "b"]),
        ("time_s,event,instance\n0,add,a\nsoon,remove,a\n", ["3"]),
        ("what,is,this\n1,2,3\n", ["1"]),
    ],
)
def test_a_bad_trace_is_refused_by_file_and_line(
    parcae: Run, home: Path, text: str, words: list[str]
) -> None:
    """An empty trace, time going backwards, a removal of what was never added: nothing is started."""
    Path("bad.csv").write_text(text)
    done = parcae("launch", "gpt-tiny", "--trace", "bad.csv", "--steps", "1")
    assert done.code == 2
    assert is_one_line(done, "bad.csv", *words)
    assert not (home / "jobs").exists()


def test_a_trace_that_is_no_text_is_refused(parcae: Run) -> None:
    """Binary files are named, not decoded."""
    Path("trace.csv").write_bytes(b"\xff\xfe\x00\x80")
    done = parcae("launch", "gpt-tiny", "--trace", "trace.csv")
    assert done.code == 2
    assert is_one_line(done, "trace.csv", "not a text file")


def test_data_that_does_not_fit_the_model_is_refused(parcae: Run) -> None:
    """Tokens above the vocabulary, and text that evaluation would hold out whole: before anything starts."""
    Path("high.bin").write_bytes(b"\x2c\x01" * 100)
    done = parcae("launch", "gpt-tiny", "--data", "high.bin")
    assert done.code == 2
    assert is_one_line(done, "--data", "high.bin: token 300 is not below the model's vocab, 256")
    Path("short.txt").write_text("x" * 1000)
    done = parcae("launch", "gpt-tiny", "--data", "short.txt", "--eval-every", "2")
    assert done.code == 2
    assert is_one_line(done, "--data", "15 samples", "eval_samples holds 36")


def test_a_model_is_shown_with_its_training(parcae: Run) -> None:
    """What its template says and what it leaves to defaults, for people and for scripts."""
    text = parcae("models", "gpt-tied").out
    for words in ("320,512", "20 steps of warm-up, cosine to 0.0002", "0.1", "36 held-out samples"):
        assert words in text
    shown = json.loads(parcae("models", "gpt2-1.5b", "--json").out)
    assert shown["training"]["schedule"] == "cosine" and shown["training"]["clip_norm"] == 1.0


def test_data_that_cannot_be_read_is_refused(parcae: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A glob that matches a file without permission, a folder only, or empty files only says so."""
    Path("folder").mkdir()
    Path("empty.txt").touch()
    Path("secret.txt").write_text("x")
    done = parcae("launch", "gpt-tiny", "--data", "folder", "--dry-run")
    assert done.code == 2
    assert is_one_line(done, "folder", "matches no file")
    done = parcae("launch", "gpt-tiny", "--data", "empty.*", "--dry-run")
    assert done.code == 2
    assert is_one_line(done, "empty.*", "empty")

    opened = Path.open

    def refuse(path: Path, *arguments: object, **more: object) -> object:
        if path.name == "secret.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as root, whom no permission stops
    done = parcae("launch", "gpt-tiny", "--data", "*.txt", "--dry-run")
    assert done.code == 2
    assert is_one_line(done, "secret.txt", "Permission denied")


def test_a_second_job_of_the_same_name_is_refused(parcae: Run, journal: Journal) -> None:
    """Also when the first has ended: its record is there to be read."""
    write_job(journal, "mine")
    journal.set_job_state("mine", "done")
    done = parcae("launch", "gpt-tiny", "--name", "mine")
    assert done.code == 2
    assert is_one_line(done, "mine", "already a job", "parcae status mine")


@pytest.mark.parametrize("module", ["runtime.py", "cloud/__init__.py"])
def test_a_module_named_like_ours_in_the_working_folder_is_refused(parcae_process: Run, module: str) -> None:
    """It is named, with the way out, before anything is started; looking at jobs still works there."""
    path = Path(module)
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise SystemExit('imported')\n")
    done = parcae_process("launch", "gpt-tiny")
    assert done.code == 2
    assert is_one_line(done, str(Path(path.parts[0]).resolve()), "Rename it")
    assert parcae_process("status").code == 0


def test_a_folder_without_code_named_like_ours_is_fine(parcae: Run) -> None:
    """A folder of other files called `cloud` hides nothing."""
    Path("cloud").mkdir()
    Path("cloud/main.tf").touch()
    assert parcae("launch", "gpt-tiny", "--dry-run").code == 0


def test_a_module_that_hides_ours_is_refused_everywhere(parcae_process: Run) -> None:
    """PYTHONPATH comes before what is installed: no command runs with somebody else's `runtime`."""
    Path("runtime.py").write_text("raise SystemExit('imported')\n")
    done = parcae_process("status", PYTHONPATH=str(Path.cwd()))
    assert done.code == 2
    assert is_one_line(done, "runtime.py", "PYTHONPATH")


def test_a_home_that_cannot_be_used_is_named(parcae: Run, home: Path) -> None:
    """A file in place of the journal, or of the home, is an error with the variable to change."""
    home.mkdir()
    (home / "journal.db").write_text("this is not a database at all " * 50)
    done = parcae("status")
    assert done.code == 1
    assert is_one_line(done, "journal.db", "PARCAE_HOME")


def test_a_bug_is_one_line_and_a_traceback_on_request(parcae: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is reported as a bug with its place; PARCAE_DEBUG=1 shows all of it."""

    def broken() -> None:
        raise RuntimeError("no such thing\nas this")

    monkeypatch.setattr("parcae_cli.commands.models.list_models", broken)
    done = parcae("models")
    assert done.code == 1
    assert is_one_line(done, "internal error", "RuntimeError: no such thing as this", "test_errors.py:")
    monkeypatch.setenv("PARCAE_DEBUG", "1")
    assert "Traceback" in parcae("models").err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FailedError("x"), 1),
        (InputError("x"), 2),
        (NoCapacityError("x"), 3),
        (QuotaError("x"), 4),
        (CredentialsError("x"), 4),
        (MaybeStillRunningError("x"), 5),
        (CloudError("x"), 1),
        (Interrupted("x"), 130),
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(2, "No such file", "x.csv"), 1),
    ],
)
def test_every_kind_of_error_has_its_exit_code(error: BaseException, code: int) -> None:
    """The codes are those that the README lists."""
    assert describe(error)[0] == code


def test_a_reader_that_leaves_early_is_no_error(journal: Journal, home: Path) -> None:
    """`parcae logs | head -1` prints one line and nothing else."""
    write_job(journal, "a")
    for k in range(3000):
        (journal.job_folder("a") / "events.jsonl").open("a").write(
            f'{{"time_s": {k}, "kind": "x", "text": "some text that fills the pipe", "why": ""}}\n'
        )
    command = f"{sys.executable} -P -m parcae_cli.main logs a | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_ctrl_c_while_a_command_works_is_130(home: Path) -> None:
    """An interrupt anywhere in a command ends it with one word and code 130."""
    script = (
        # a test run in the background inherits an ignored SIGINT, which a terminal's foreground never has
        "import signal, sys, time; import parcae_cli.commands.models as m;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "m.list_models = lambda: (signal.raise_signal(signal.SIGINT), time.sleep(5));"
        "from parcae_cli.main import main; sys.exit(main(['models']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert signal.SIGINT == 2
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "parcae: interrupted\n")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("trace", "synth", "-", "--hours", "inf"), 2, "finite"),
        (("trace", "synth", "/dev/full", "--force"), 1, "No space left on device"),
        (("trace", "synth", ".", "--force"), 2, "is a folder"),
        (("launch", "gpt-tiny", "--checkpoint", "", "--dry-run"), 2, "--checkpoint: is empty"),
        (("launch", "gpt-tiny", "--nodes", 1, "--dry-run"), 2, "give --nodes 2"),
    ],
)
def test_what_a_newcomer_may_well_try_is_one_line(
    words: tuple[object, ...], code: int, said: str, parcae: Run
) -> None:
    """Numbers that are none, a full disk, folders for files, empty names, too few nodes in a dry run."""
    done = parcae(*words)
    assert done.code == code and is_one_line(done, said)


@pytest.mark.parametrize("more", [("--dry-run",), ("--yes",)])
def test_a_cloud_without_credentials_is_one_line_and_exit_code_4(
    parcae: Run, home: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """It says how to get some; a dry run shows the market and needs them as well. No job is begun."""
    pytest.importorskip("google.cloud.compute_v1", reason="needs pip install 'parcae-cli[gcp]'")
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", ENDPOINT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(home))  # what gcloud would keep in the user's home
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # this machine is none of Google's
    done = parcae("launch", "gpt3-6b", "--cloud", "gcp", "--nodes", 16, *more)
    assert done.code == 4
    assert is_one_line(done, "gcp: no credentials", "gcloud auth application-default login")
    assert json.loads(parcae("status", "--json").out) == {"job": None, "state": None}


def test_a_wrong_trace_is_refused_by_a_dry_run(parcae: Run) -> None:
    """As it would be by the launch itself."""
    Path("empty.csv").touch()
    done = parcae("launch", "gpt-tiny", "--trace", "empty.csv", "--dry-run")
    assert done.code == 2 and is_one_line(done, "empty.csv", "trace is empty")


def test_a_home_that_is_a_file_is_one_line(parcae_process: Callable[..., Done]) -> None:
    """Nothing of the launch's own threads is printed beside it."""
    done = parcae_process("launch", "gpt-tiny", "--steps", 1, PARCAE_HOME="/dev/null")
    assert done.code == 1 and is_one_line(done, "PARCAE_HOME")
