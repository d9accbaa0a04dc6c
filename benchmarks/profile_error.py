"""How well a measured profile foretells real steps: `parcae profile`, then jobs and replays of one layout.

    python benchmarks/profile_error.py [--models gpt-tiny,gpt-30m] [--steps 40]

For each model: a profile of this machine; a job with that profile on one node (1x1) and on two, a job whose
make-believe device forces two stages (1x2). Each job's median step (without the first five) stands beside the
step that `parcae replay --costs measured --profile` takes on a trace of as many instances, and for the layout
that the planner would not choose beside the profile's row. More workers than cores would be measured against
each other, so two is the most. The profile is measured anew right before each job: other load moves both.
The fastest tenth of the steps is there for machines that are never quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from statistics import median

from parcae_cli.measured_profile import model_with_profile
from runtime.planning.profile import estimated_profile
from runtime.planning.types import Layout

SKIPPED_STEPS = 5


def parcae(home: Path, *arguments: object) -> dict:
    """One command's JSON object."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "parcae_cli.main", *map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PARCAE_HOME": str(home)},
        check=True,
    )
    return json.loads(done.stdout)


def real_step(home: Path, job: str) -> tuple[Layout, float, float]:
    """The layout of a job that has ended, its median step and that of the fastest tenth, in seconds."""
    lines = (home / "jobs" / job / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][SKIPPED_STEPS:]
    times = [after["time_s"] - before["time_s"] for before, after in pairwise(rows)]
    fast_s = sorted(times)[len(times) // 10]
    return Layout(rows[-1]["pipelines"], rows[-1]["stages"]), median(times), fast_s


def replayed_step(home: Path, profile: Path, instances: int) -> float:
    """The step of a replay on a trace in which so many instances stay, in seconds."""
    trace = home / f"still-{instances}.csv"
    rows = [f"0,add,i{number}" for number in range(instances)]
    trace.write_text("\n".join(["time_s,event,instance", *rows, "36000,add,late"]) + "\n")
    spec = model_with_profile(json.loads(profile.read_text())["model"], profile)
    answer = parcae(home, "replay", trace, "--profile", profile, "--policy", "ideal", "--end-minute", 600)
    return spec.training.mini_batch / answer["policies"][0]["samples_per_s"]


def main() -> None:
    """Print a line a layout."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--models", default="gpt-tiny,gpt-30m")
    parser.add_argument("--steps", type=int, default=40)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for model in parsed.models.split(","):
            for nodes, own_device in ((1, False), (2, False), (2, True)):
                profile = home / f"{model}.json"
                parcae(home, "profile", model, "--out", profile, "--force")
                job = f"{model}-{nodes}{'-stages' if own_device else ''}"
                options = [] if own_device else ["--profile", profile]
                parcae(home, "launch", model, "--nodes", nodes, "--steps", parsed.steps, "--name", job,
                       "--backup", "none", *options)  # fmt: skip
                layout, real_s, fast_s = real_step(home, job)
                row_s = estimated_profile(model_with_profile(model, profile), nodes).iteration_s[layout]
                told_s = row_s if own_device else replayed_step(home, profile, nodes)
                how = "profile's row" if own_device else "replay"
                print(
                    f"{model} {layout}: real {real_s * 1e3:.1f} ms, {how} {told_s * 1e3:.1f} ms, "
                    f"error {100 * (told_s / real_s - 1):+.1f} %; its fastest tenth {fast_s * 1e3:.1f} ms, "
                    f"error {100 * (told_s / fast_s - 1):+.1f} %",
                    flush=True,
                )


if __name__ == "__main__":
    main()
