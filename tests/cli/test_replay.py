"""`parcae replay` and `parcae trace`, as a user runs them."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from parcae_cli.main import main

DEMO = str(Path(__file__).resolve().parents[2] / "templates/traces/demo-8.csv")


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_json_keeps_its_contract(capsys: pytest.CaptureFixture[str]) -> None:
    """One object on stdout with every field that scripts rely on, and nothing on stderr."""
    code, out, err = _run(capsys, "replay", DEMO, "--model", "gpt-tiny", "--policy", "all", "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert set(answer["trace"]) == {
        "name",
        "hours",
        "max_available",
        "mean_available",
        "preempted",
        "allocated",
    }
    assert {"model", "costs", "interval_s", "policies", "planner"} <= set(answer)
    assert set(answer["planner"]) == {"decisions", "median_ms", "p95_ms"}
    assert {policy["name"] for policy in answer["policies"]} == {
        "parcae",
        "parcae-oracle",
        "reactive",
        "checkpoint",
        "redundancy",
        "on-demand",
        "ideal",
        "offline-optimum",
    }
    for policy in answer["policies"]:
        assert set(policy) == {
            "name",
            "samples",
            "samples_per_s",
            "percent_of_ideal",
            "usd",
            "usd_by",
            "usd_per_million_units",
            "unit",
            "gpu_hours",
            "migrations",
            "layouts",
        }
        assert set(policy["gpu_hours"]) == {
            "effective",
            "migrating",
            "checkpointing",
            "redundant",
            "lost",
            "idle",
        }
        assert set(policy["migrations"]) == {"intra_stage", "inter_stage", "pipeline", "rollback"}
        assert all(len(layout) == 3 for layout in policy["layouts"])


def test_the_table_names_every_policy(capsys: pytest.CaptureFixture[str]) -> None:
    """Text for people goes to stdout."""
    code, out, _ = _run(capsys, "replay", DEMO, "--model", "gpt3-6b", "--policy", "parcae,reactive,ideal")
    assert code == 0
    assert all(name in out for name in ("parcae", "reactive", "ideal", "% of ideal", "GPU hours"))


@pytest.mark.parametrize("suffix", ["png", "svg", "html"])
def test_pictures_are_drawn(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind is what it says, and a page needs nothing from anywhere else."""
    path = tmp_path / f"replay.{suffix}"
    assert _run(capsys, "replay", DEMO, "-m", "gpt-tiny", "--plot", str(path))[0] == 0
    data = path.read_bytes()
    if suffix == "png":
        assert data.startswith(b"\x89PNG")
    elif suffix == "svg":
        assert ElementTree.fromstring(data).tag.endswith("svg")
    else:
        text = data.decode()
        assert "<svg" in text and "Decisions" in text
        assert not [word for word in ("src=", "href=", "<link", "url(", "@import", "fetch(") if word in text]


class _Tags(HTMLParser):
    """Collects tags, and the content of the page's data."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: dict[str, str] = {}
        self.shown: set[str] = set()
        self.rows = 0
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._inside = found.get("id") or ""
        self.open.append(tag)
        self.rows += "data-at" in found
        if tag == "g" and found.get("data-shows"):
            self.shown.add(str(found["data-shows"]))

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.ids[self._inside] = self.ids.get(self._inside, "") + data


def test_the_page_shows_every_policy_its_luck_and_its_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layouts and curves of each policy, a section for seeds and one for the sweep, names made harmless."""
    trace = tmp_path / "<b>&'.csv"
    trace.write_text(Path(DEMO).read_text())
    path = tmp_path / "report.html"
    options = ("-p", "parcae,checkpoint,ideal", "--seeds", "2", "--sweep", "fleet=4,8", "--plot", str(path))
    assert _run(capsys, "replay", str(trace), "-m", "gpt-tiny", *options)[0] == 0
    text = path.read_text()
    page = _Tags()
    page.feed(text)
    data = json.loads(page.ids["data"])
    assert page.shown == set(data["policies"]) == {"parcae", "checkpoint", "ideal"}
    for policy in data["policies"].values():
        assert policy["layouts"] and policy["curve"] == sorted(policy["curve"])
    assert page.rows > 5 and "<h2>Luck" in text and "<h2>Sweep" in text
    assert "<b>&'" not in text and "&lt;b&gt;&amp;" in text
    assert "prefers-color-scheme:dark" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere.csv",), "nowhere.csv: there is no such file"),
        ((DEMO, "--model", "gpt-9"), "no model 'gpt-9'; there are"),
        ((DEMO, "--policy", "magic"), "no policy 'magic'; there are"),
        ((DEMO, "--forecaster", "crystal"), "no forecaster 'crystal'; there are"),
        ((DEMO, "--costs", "guessed"), "no costs 'guessed'; there are artifact, measured"),
        ((DEMO, "--model", "gpt-tiny", "--costs", "artifact"), "use --costs measured"),
        ((DEMO, "--plot", "x.pdf"), "must end in .png, .svg, .html"),
        ((DEMO, "--plot", "/nowhere/x.png"), "there is no folder /nowhere"),
        ((DEMO, "--start-minute", "10", "--end-minute", "5"), "are not a part of its 16 minutes"),
        ((DEMO, "--interval", "0"), "--interval"),
        ((DEMO, "--sweep", "colour=1,2"), "no key 'colour'; there are lookahead, interval"),
        ((DEMO, "--sweep", "fleet=0"), "fleet=0: must be a whole number above 0"),
        ((DEMO, "--seed", "5..1"), "the range is empty"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong and what there is instead; never a traceback."""
    code, out, err = _run(capsys, "replay", *arguments)
    assert (code, out) == (2, "")
    assert said in err and "Traceback" not in err


def test_seeds_and_sweeps_add_to_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """The contract's fields are means then, each seed's figures stand beside them, and cells are listed."""
    options = ("-m", "gpt-tiny", "-p", "parcae,checkpoint", "--seed", "1..3", "--sweep", "fleet=4,8")
    code, out, err = _run(capsys, "replay", DEMO, *options, "--json")
    answer = json.loads(out)
    assert (code, err, answer["seeds"]) == (0, "", [1, 2, 3])
    for policy in answer["policies"]:
        assert [figures["seed"] for figures in policy["by_seed"]] == [1, 2, 3]
        over = policy["spread"]["samples"]
        assert over["low"] <= over["mean"] <= over["high"]
        assert over["mean"] == pytest.approx(policy["samples"])
        assert policy["usd"] == pytest.approx(sum(policy["usd_by"].values()))
    assert [cell["values"] for cell in answer["sweep"]] == [{"fleet": 4}, {"fleet": 8}]
    assert answer["sweep"][1]["policies"][0]["samples"] == answer["policies"][0]["samples"]
    code, out, _ = _run(capsys, "replay", DEMO, *options)
    assert code == 0 and "means of 3 seeds" in out and "USD per million tokens" in out


def test_a_smaller_fleet_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """`--fleet` caps what is wanted, for every policy."""
    _, out, _ = _run(
        capsys, "replay", DEMO, "-m", "gpt-tiny", "-p", "parcae,on-demand", "--fleet", "3", "--json"
    )
    answer = json.loads(out)
    assert answer["trace"]["max_available"] == 3
    assert max(pipelines * stages for _, pipelines, stages in answer["policies"][0]["layouts"]) <= 3


def test_forecasters_can_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """`--forecaster all` ranks them beside the result."""
    code, out, _ = _run(
        capsys, "replay", DEMO, "-m", "gpt-tiny", "-p", "parcae", "--forecaster", "all", "--json"
    )
    ranking = json.loads(out)["forecasters"]
    assert code == 0 and len(ranking) >= 3
    assert [entry["samples"] for entry in ranking] == sorted((e["samples"] for e in ranking), reverse=True)


def test_traces_can_be_looked_at_and_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `synth` writes `info` reads, and nothing is written over unasked."""
    path = str(tmp_path / "made.csv")
    made = ("trace", "synth", path, "--hours", "2", "--max", "12", "--seed", "4")
    assert _run(capsys, *made)[0] == 0
    code, out, _ = _run(capsys, "trace", "info", path, "--json")
    figures = json.loads(out)
    assert code == 0 and figures["hours"] == 2 and figures["max_available"] <= 12
    assert _run(capsys, *made)[0] == 2
    assert _run(capsys, *made, "--force")[0] == 0
    assert "instances" in _run(capsys, "trace", "info", path)[1]


def test_a_trace_that_is_too_small_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """Every policy gets nowhere: the table is followed by the arithmetic, and JSON has it as a note."""
    _, out, _ = _run(capsys, "replay", DEMO, "--model", "gpt3-6b")
    assert "nothing can train: gpt3-6b needs at least 12 nodes" in out
    _, out, _ = _run(capsys, "replay", DEMO, "--model", "gpt3-6b", "--json")
    assert "needs at least 12" in json.loads(out)["note"]


def test_several_gpus_an_instance_are_said_and_paid_for_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Four times the GPU hours for the same money; an impossible number is refused."""
    arguments = ("replay", DEMO, "--model", "gpt-tiny", "--policy", "ideal", "--json")
    answers = [json.loads(_run(capsys, *arguments, "--gpus-per-instance", gpus)[1]) for gpus in ("1", "4")]
    one, four = (answer["policies"][0] for answer in answers)
    assert "gpus_per_instance" not in answers[0] and answers[1]["gpus_per_instance"] == 4
    assert four["usd"] == pytest.approx(one["usd"]) and four["samples"] > one["samples"]
    assert sum(four["gpu_hours"].values()) == pytest.approx(4 * sum(one["gpu_hours"].values()))
    code, _, err = _run(capsys, *arguments, "--gpus-per-instance", "0")
    assert code == 2 and "--gpus-per-instance" in err
