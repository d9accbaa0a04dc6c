"""Hundreds of faults over many seeds: every run must end with the weights of a quiet one.

Each run is a whole job on the local cloud in a process of its own (tests/end_to_end/storm.py says what
befalls it); seed n takes way of training number n. A line a run: what was struck, at which points of a step
workers ended themselves, how many generations there were, and what did not hold. Exits with 1 if anything
did not.

Run: python benchmarks/chaos.py [--seeds N] [--first N] [--steps N]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from tests.end_to_end import storm  # noqa: E402 - the checkout is the place of the tests

# More than a run needs on a busy machine; then it hangs, which is a failure too.
RUN_S = 280.0
LAUNCHER = storm.KINDS[-1].name
KILLS = 3  # of the launcher, in runs of that kind


def one(seed: int, steps: int, keep: Path | None = None) -> dict[str, Any]:
    """One storm and the quiet run beside it, in this process."""
    kind = storm.KINDS[seed % len(storm.KINDS)]
    with tempfile.TemporaryDirectory(prefix="parcae-chaos-") as folder:
        home = keep or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        base = storm.quiet(home, kind, steps)
        began_s = time.monotonic()
        if kind.name == LAUNCHER:
            for attempt in range(KILLS):
                command = [sys.executable, __file__, "--launch", str(home), "--one", str(seed)]
                subprocess.run([*command, "--steps", str(steps), "--attempt", str(attempt)], check=False)
            run, weather = storm.go_on(home, seed, steps, KILLS)
            deaths = storm.deaths(home / "jobs" / "wild")
        else:
            run, weather, deaths = storm.blow(home, kind, seed, steps)
        return {
            "seed": seed,
            "kind": kind.name,
            "s": round(time.monotonic() - began_s, 1),
            "struck": dict(weather.struck),
            "points": dict(deaths),
            "generations": run.result.migrations[-1].generation if run.result.migrations else 0,
            "rollbacks": sum(event["kind"] == "rollback" for event in run.events),
            "most": [max((getattr(h, f) for h in weather.seen), default=0) for f in ("threads", "files")],
            "wrong": storm.wrong_with(run, base, home, kind.exact),
            "longest_s": longest_s(run),
        }


def longest_s(run: Any) -> float:
    """The longest time between two commits in a row, in seconds: a stall shows here."""
    times = [row["time_s"] for row in run.metrics]
    return round(max((b - a for a, b in itertools.pairwise(times)), default=0.0), 2)


def launch(home: Path, seed: int, steps: int, attempt: int) -> None:
    """Begin the job, or go on with it, until this process is killed at some moment."""
    after_s = random.Random(seed + attempt).uniform(2.0, 6.0)
    threading.Timer(after_s, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    if attempt:
        storm.go_on(home, seed, steps, attempt)
    else:
        storm.blow(home, storm.KINDS[seed % len(storm.KINDS)], seed, steps)


def apart(seed: int, steps: int, keep: Path | None) -> dict[str, Any]:
    """The same in a process of its own, which a hanging run does not outlive."""
    command = [sys.executable, __file__, "--one", str(seed), "--steps", str(steps)]
    command += ["--keep", str(keep / str(seed))] if keep else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            out, err = process.communicate(timeout=RUN_S)
        except subprocess.TimeoutExpired:
            process.terminate()  # the launcher ends its fleet
            out, err = process.communicate()
            return {"seed": seed, "wrong": [f"it did not end within {RUN_S:g} s"], "said": err[-2000:]}
    if process.returncode:
        return {"seed": seed, "wrong": [f"exit {process.returncode}"], "said": err[-4000:]}
    return dict(json.loads(out.splitlines()[-1]))


def main() -> int:
    """See the module."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--seeds", type=int, default=12, help="how many runs (default 12)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--steps", type=int, default=400, help="of each run (default 400)")
    parser.add_argument("--keep", type=Path, help="leave the jobs' files in this folder")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--launch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--attempt", type=int, default=0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.launch is not None:
        launch(chosen.launch, chosen.one, chosen.steps, chosen.attempt)
        return 0
    if chosen.one is not None:
        print(json.dumps(one(chosen.one, chosen.steps, chosen.keep)))
        return 0
    struck: Counter[str] = Counter()
    points: Counter[str] = Counter()
    failed = 0
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        outcome = apart(seed, chosen.steps, chosen.keep)
        print(json.dumps(outcome), flush=True)
        struck.update(outcome.get("struck", {}))
        points.update(outcome.get("points", {}))
        failed += bool(outcome["wrong"])
    print(f"{struck.total()} strikes: {dict(struck)}")
    print(f"{points.total()} scripted deaths: {dict(points)}")
    print(f"{chosen.seeds - failed} of {chosen.seeds} runs ended with the weights of a quiet run")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
