"""The project's own rules, beyond what linters know."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("parcae_cli", "cloud", "runtime")
HEAVY = ("numpy", "scipy", "statsmodels", "matplotlib", "torch", "asyncssh", "boto3", "google")
MOST_LINES = 400


def sources(*folders: str) -> Iterator[Path]:
    """Every Python file under these folders of the project."""
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def is_event(target: ast.expr, tree: ast.Module) -> bool:
    """Whether the file makes this name or attribute a threading.Event."""
    return any(
        isinstance(node, ast.Assign)
        and ast.unparse(node.value) == "threading.Event()"
        and ast.unparse(node.targets[0]) == ast.unparse(target)
        for node in ast.walk(tree)
    )


def test_the_engine_waits_for_collectives_in_the_abandonable_waiter_only() -> None:
    """No `.wait()` without an argument stands outside waits.py: it would hang when a peer dies."""
    bare = []
    for path in sources("runtime/engine"):
        if path.name == "waits.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "wait"
                and not node.args
                and not node.keywords
                and not is_event(node.func.value, tree)
            ):
                bare.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert bare == []


@pytest.mark.parametrize("arguments", [["--help"], ["launch", "--help"], ["status", "--json"], ["down"]])
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """Help, and looking at a home without jobs, load no numerics, no torch, no SSH and no cloud's client."""
    probe = (
        "import sys; from parcae_cli.main import main; code = main(sys.argv[1:]);"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={"PARCAE_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"},
    )
    assert (done.returncode, done.stderr.strip()) == (0, "[]")


def test_nobody_asks_which_cloud_it_is() -> None:
    """No comparison with a cloud's name: what clouds differ in are their modules, and tables of abilities."""
    names = {"local", "hosts", "aws", "gcp"}
    asked = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in [*sources("parcae_cli", "runtime"), *(ROOT / "cloud").glob("*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare | ast.MatchValue)
        for word in ast.walk(node)
        if isinstance(word, ast.Constant) and word.value in names
    ]
    assert asked == []


def test_files_stay_readable() -> None:
    """No source file has more than 400 lines."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in sources(*PACKAGES, "tests", "benchmarks")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert long == {}


def test_no_benchmark_hides_a_module_of_the_standard_library() -> None:
    """Python looks beside a script first: a benchmarks/profile.py broke whatever imports cProfile there."""
    assert {path.stem for path in sources("benchmarks")} & sys.stdlib_module_names == set()


def test_every_module_says_what_it_is() -> None:
    """Every Python file that is not empty begins with a docstring."""
    silent = [
        str(path.relative_to(ROOT))
        for path in sources(*PACKAGES, "tests", "benchmarks")
        if (text := path.read_text(encoding="utf-8")).strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert silent == []


def test_every_test_states_a_behaviour() -> None:
    """Every test has a docstring."""
    silent = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in sources("tests")
        if path.name.startswith("test_")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_the_project_names_no_place_where_it_was_made() -> None:
    """No file names a package index or a folder of one machine: packages come from where pip is told."""
    words = ("index-url", "find-links", "pythonhosted", "/opt/pypi", "/work/")
    files = [path for path in ROOT.glob("*") if path.is_file() and path.name != ".git"]
    for folder in (*PACKAGES, "tests", "templates", "benchmarks", ".ci"):
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    found = []
    for path in files:
        if path == Path(__file__).resolve() or "__pycache__" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {word}" for word in words if word in text]
    assert found == []


def test_every_direct_dependency_is_pinned() -> None:
    """constraints.txt pins what pyproject.toml asks for, and names no place to get it from."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(name for extra in extras for name in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0] for line in lines if line and not line.startswith("#")}
    assert {name.partition(">=")[0] for name in wanted} <= pins
    assert all("==" in line for line in lines if line and not line.startswith("#"))
