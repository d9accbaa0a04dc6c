"""What changes of the fleet cost a running job, each figure beside its target.

    .venv/bin/python benchmarks/pause.py [--only PART[,PART..]] [--quick] [--without-copy]

Parts: gpt-tiny and gpt-30m (a model), noticed, deaths, goodput and leak (a kind of figure); any of each. All
of it takes about 18 minutes on two idle cores, --quick four. Exits with 1 if a target was not met.

Whole jobs on the local cloud. A pause is the time from the last commit before a change to the first after it,
less an ordinary step of the new layout (median of the steps that follow). Goodput is the time of quiet blocks
of steps over that of blocks with a change every 20 steps, the two kinds in turns within one job, so that a
drift of the machine cancels; `node-hours` is the same per node that lived. A death's time is that to the next
commit, less the step that is done again. Everything shares this machine's cores, nodes that boot included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

from changing_fleet import Weather, kind_of, train

from parcae_cli.catalogue import load_template
from runtime.control.fleet.link_times import LinkTimes

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # the test of what a hundred generations leave behind is the checkout's

MODELS = ("gpt-tiny", "gpt-30m")
PARTS = ("noticed", "deaths", "goodput", "leak")
KINDS = ("intra_stage", "inter_stage", "pipeline", "join")
MEDIAN_STEPS, P95_STEPS, GOODPUT, KILL_S = 0.5, 2.0, 0.97, 0.15
# 2x2 on 4 nodes; 3x2 on 6 (join), a spare, which replaces a member (inter-stage), 2x2 on 4 (intra-stage), 1x3
# on 3 and back (pipeline)
ROUND = ("join join", "join", "notice", "notice notice", "notice", "join")
EVERY = 20  # steps from change to change, for goodput


@dataclass(frozen=True)
class Scale:
    """How much of a model is run. Notices are in seconds; pairs are of a quiet and a busy block."""

    gap: int
    rounds: int
    notice_s: float
    kills: int
    stops: int
    dead_nodes: int
    dead_gap: int
    pairs: int
    block: int
    nodes: int


SCALES = {
    "gpt-tiny": Scale(24, 4, 1.6, 24, 6, 8, 24, 24, 40, 8),
    # a gap that is no multiple of the backup's period of 10: changes meet its pushes as often as by chance
    "gpt-30m": Scale(11, 4, 5.0, 4, 1, 4, 6, 8, 20, 6),
}
QUICK = {
    "gpt-tiny": Scale(24, 1, 1.6, 8, 2, 8, 24, 8, 40, 8),
    "gpt-30m": Scale(11, 1, 5.0, 2, 0, 4, 6, 1, 20, 6),
}


class Score:
    """Prints figures beside their targets, and counts those that were not met."""

    def __init__(self) -> None:
        self.met = self.missed = 0

    def mark(self, value: float | None, target: float, at_least: bool = False) -> str:
        """The target in words, and whether the value meets it."""
        good = value is not None and (value >= target if at_least else value <= target)
        self.met, self.missed = self.met + good, self.missed + (not good)
        return f"({'>=' if at_least else '<='} {target:g} {'ok' if good else 'NOT MET'})"

    def say(self, name: str, what: str) -> None:
        """One line."""
        print(f"  {name:22s} {what}", flush=True)

    def times(
        self, name: str, values: Sequence[float], unit: str, target: float | None, more: str = ""
    ) -> None:
        """Count, median and p95 of times, of which the median has a target."""
        mark = "" if target is None else self.mark(median(values) if values else None, target)
        if not values:
            self.say(name, f"   0 seen {mark}")
            return
        self.say(
            name, f"{len(values):4d}  median {median(values):7.3f} {unit} {mark}  p95 {p95(values):.3f}{more}"
        )


def p95(values: Sequence[float]) -> float:
    """The value that 95 % do not exceed; of fewer than 20 the largest, or the one below it."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]


def noticed(home: Path, template: dict[str, Any], scale: Scale, score: Score, ahead: bool) -> None:
    """Changes of every kind, with notice."""
    name = f"{template['name']}-{'ahead' if ahead else 'at-switch'}"
    actions = ROUND * scale.rounds
    weather = Weather(home, name, scale.gap, actions, scale.notice_s)
    job = train(home, name, template, (4, 8), scale.gap * (len(actions) + 2), weather, copy_ahead=ahead)
    pauses: dict[str, list[float]] = defaultdict(list)
    moved: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for record in job.result.migrations:
        if record.noticed:
            kind, bytes_ = kind_of(record), record.transfer
            pauses[kind].append(job.pause_steps(record))
            moved[kind].append((bytes_.bytes_ahead / 1e6, bytes_.bytes_at_switch / 1e6, bytes_.fetch_s * 1e3))
    ordinary = median(b - a for a, b in pairwise(job.at_s))
    how = "" if ahead else ", all state sent at the switch"
    print(f"{template['name']}, pauses of noticed changes in steps{how} (a step: {ordinary * 1e3:.0f} ms)")
    for kind in KINDS:
        if not pauses[kind]:
            score.say(kind, f"   0 seen {score.mark(None, MEDIAN_STEPS)}")
            continue
        before, at_switch, took_ms = (median(column) for column in zip(*moved[kind], strict=True))
        worst = p95(pauses[kind])
        more = (
            f" {score.mark(worst, P95_STEPS)}  {before:.1f} MB ahead, {at_switch:.1f} MB in {took_ms:.0f} ms"
        )
        score.times(kind, pauses[kind], "steps", MEDIAN_STEPS, more)
    everything = [pause for found in pauses.values() for pause in found]
    if everything:
        score.times("all", everything, "steps", MEDIAN_STEPS, f" {score.mark(p95(everything), P95_STEPS)}")


def deaths(home: Path, template: dict[str, Any], scale: Scale, score: Score) -> None:
    """Workers killed and stopped without notice, at any moment of a step."""
    words = ["kill"] * scale.kills + ["stop"] * scale.stops
    name = f"{template['name']}-deaths"
    weather = Weather(home, name, scale.dead_gap, words, 1.0)
    # A stopped worker is found by its silence, which takes as long as many steps.
    nodes = (scale.dead_nodes, scale.dead_nodes)
    job = train(home, name, template, nodes, scale.dead_gap * (len(words) + 3), weather)
    print(
        f"{template['name']}, {nodes[0]} nodes, without notice: to the next commit, less the step done again"
    )
    times = LinkTimes()
    targets = {
        "SIGKILL": KILL_S if template["name"] == MODELS[0] else None,
        "SIGSTOP": times.mute_s + times.beat_s,
    }
    for signal_name, moments in weather.struck.items():
        if moments:
            score.times(signal_name, job.after(moments), "s", targets[signal_name])


def darkness(home: Path, template: dict[str, Any], scale: Scale, score: Score) -> None:
    """Nodes whose packets are dropped, in a process of its own with a network of its own."""
    from tests.end_to_end.own_network import why_not

    if why := why_not():
        score.say("packets dropped", f"not tried: {why}")
        return
    ours, theirs = multiprocessing.Pipe(duplex=False)
    told = (home, template, scale, theirs)
    child = multiprocessing.get_context("spawn").Process(target=in_the_dark, args=told)
    child.start()
    theirs.close()
    try:
        waits = ours.recv()
    finally:
        child.join()
    times = LinkTimes()
    score.times("packets dropped", waits, "s", times.mute_s + times.beat_s)


def in_the_dark(home: Path, template: dict[str, Any], scale: Scale, told: Connection) -> None:
    """The seconds from each node's going dark to the next commit, less the step that is done again."""
    from tests.end_to_end.own_network import enter

    enter()
    name = f"{template['name']}-dark"
    weather = Weather(home, name, scale.dead_gap, ["dark"] * scale.stops, 1.0)
    count = scale.dead_nodes + scale.stops - 1  # nobody comes instead
    nodes = (count, count)
    job = train(home, name, template, nodes, scale.dead_gap * (scale.stops + 3), weather)
    told.send(job.after(weather.struck["packets dropped"]))


def goodput(home: Path, template: dict[str, Any], scale: Scale, score: Score) -> None:
    """Blocks with a change every 20 steps (a node is replaced) beside blocks without, in turns."""
    each = scale.block // EVERY
    pairs = [["join notice"] * each + ["quiet"] * each, ["quiet"] * each + ["join notice"] * each]
    actions = ["quiet"] + [word for number in range(scale.pairs) for word in pairs[number % 2]]
    name = f"{template['name']}-goodput"
    weather = Weather(home, name, EVERY, actions, scale.notice_s)
    # a busy block is over when its last change is: the next one begins as many steps later
    job = train(home, name, template, (scale.nodes, scale.nodes + 1), EVERY * (len(actions) + 1), weather)
    ratios, hours, sums = [], [], [0.0, 0.0]
    for number in range(scale.pairs):
        first = EVERY + 1 + 2 * scale.block * number
        one, other = (job.between(at, at + scale.block - 1) for at in (first, first + scale.block))
        busy, calm = (other, one) if number % 2 else (one, other)
        ratios.append(calm[0] / busy[0])
        hours.append(calm[1] / busy[1])
        sums = [sums[0] + calm[0], sums[1] + busy[0]]
    total = sums[0] / sums[1]
    changes = sum(record.step > EVERY for record in job.result.migrations)
    print(f"{template['name']}, {scale.nodes} nodes, a change every {EVERY} steps ({changes} changes)")
    score.say("goodput", f"{total:.3f} {score.mark(total, GOODPUT, True)}  of {scale.pairs} pairs of blocks "
              f"of {scale.block} steps, median {median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}; "
              f"node-hours {median(hours):.3f}")  # fmt: skip


def leak(home: Path, score: Score) -> None:
    """More than a hundred generations: what the processes that live through them hold, early and late."""
    from tests.end_to_end import test_leaks
    from tests.end_to_end.harness import train as train_quietly

    reaper, template = test_leaks.Reaper(), test_leaks.small_template()
    run = train_quietly(home, "leak", reaper, step_s=0.0, nodes=4, steps=test_leaks.STEPS, template=template)
    generations = run.result.migrations[-1].generation
    print(f"{reaper.deaths} deaths: what survivors and the launcher hold, late less early")
    score.say("generations", f"{generations:4d} {score.mark(generations, test_leaks.GENERATIONS, True)}")
    for what, limit in (("threads", 3), ("files", 8), ("megabytes", 2.5)):
        grown = {
            name: min(getattr(h, what) for h in held[-12:]) - min(getattr(h, what) for h in held[8:20])
            for name, held in reaper.seen.items()
        }
        worst = max(grown, key=lambda name: grown[name])
        score.say(what, f"{grown[worst]:+6.1f} {score.mark(grown[worst], limit)}  the most, in {worst}")


def main() -> int:
    """Print the figures."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--quick", action="store_true", help="fewer changes of each kind")
    parser.add_argument("--only", default="", help=f"of {', '.join((*MODELS, *PARTS))}; several with commas")
    parser.add_argument(
        "--without-copy", action="store_true", help="noticed changes without copying ahead, too"
    )
    args = parser.parse_args()
    chosen = [word for word in args.only.split(",") if word]
    if wrong := [word for word in chosen if word not in (*MODELS, *PARTS)]:
        parser.error(f"--only {wrong[0]}: there are {', '.join((*MODELS, *PARTS))}")
    models = [model for model in MODELS if model in chosen] or list(MODELS)
    parts = [part for part in PARTS if part in chosen] or list(PARTS)
    score, began_s = Score(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for model in models:
            template = load_template(model)
            if model == "gpt-30m":  # the fewest micro-batches with which there are changes of every kind
                template = {**template, "training": {**template["training"], "mini_batch": 3}}
            scale = (QUICK if args.quick else SCALES)[model]
            if "noticed" in parts:
                for ahead in (True, False) if args.without_copy else (True,):
                    noticed(home, template, scale, score, ahead)
            if "deaths" in parts:
                deaths(home, template, scale, score)
                if scale.stops:
                    darkness(home, template, scale, score)
            if "goodput" in parts:
                goodput(home, template, scale, score)
        if "leak" in parts and models != ["gpt-30m"]:
            leak(home, score)
    print(f"{score.met} of {score.met + score.missed} targets met, in {time.monotonic() - began_s:.0f} s")
    return 1 if score.missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
