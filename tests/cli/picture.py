"""A home with jobs that look like real ones, for tests of what is shown. Run it to have one to look at."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from runtime.control.job.journal import Journal

SPEC = {"model": "gpt-tiny", "cloud": "local", "policy": "parcae", "steps": 200, "nodes": 8, "speed": 60.0}


def migration(generation: int, step: int, kind: str, noticed: bool = True, **more: Any) -> dict[str, Any]:
    """A migration as the job reports it."""
    return {
        "generation": generation, "step": step, "kind": kind, "noticed": noticed, "pause_s": 0.0083,
        "nodes_lost": [], "nodes_joined": [], "bytes_moved": 0, "from": "4x2", "to": "4x2",
    } | more  # fmt: skip


def snapshot(now_s: float, step: int = 124) -> dict[str, Any]:
    """A job in full swing: seven nodes, one of them noticed, one spare, one coming."""
    positions = [(p, s) for p in range(3) for s in range(2)]
    nodes: list[dict[str, Any]] = [
        {"name": f"i{k + 1}", "state": "running", "position": {"pipeline": p, "stage": s},
         "zone": "local-a", "notice_deadline": None}
        for k, (p, s) in enumerate(positions)
    ]  # fmt: skip
    nodes[3] |= {"state": "noticed", "notice_deadline": now_s + 41.5}
    nodes += [
        {"name": "i9", "state": "running", "position": None, "zone": "local-b", "notice_deadline": None},
        {"name": "i12", "state": "booting", "position": None, "zone": "local-b", "notice_deadline": None},
    ]
    history = [8, 8, 8, 7, 7, 6, 6, 5, 5, 5, 6, 7, 7, 8, 8, 8, 8, 7, 6, 6, 4, 4, 5, 6, 6, 7, 8, 8, 7]
    return {
        "step": step, "steps": 200, "loss": 3.2131, "samples_per_s": 142.6, "liveput": 131.2,
        "layout": {"pipelines": 3, "stages": 2}, "cuts": [[0, 1, 2, 3], [4, 5, 6, 7]], "generation": 9,
        "nodes": nodes, "availability": history,
        "forecast": [7.0, 6.8, 6.7, 6.6, 6.6, 6.5, 6.5, 6.4, 6.4, 6.4],
        "availability_interval_s": 60.0, "usd": 0.0431, "usd_per_hour": 6.43, "usd_on_demand": 0.1437,
        "backup_step": 120, "why": "liveput 131.2 of 3x2 beats 118.0 of 2x3",
        "migrations": [
            migration(1, 0, "start", nodes_joined=[f"i{k}" for k in range(1, 9)], **{"from": None}),
            migration(5, 47, "intra_stage", nodes_lost=["i8"], to="3x2"),
            migration(6, 63, "inter_stage", pause_s=0.021, bytes_moved=1_605_632, bytes_ahead=1_204_224,
                      copy_s=0.034, fetch_s=0.004, nodes_joined=["i9"]),
            migration(8, 88, "rollback", noticed=False, pause_s=1.31, bytes_moved=4_816_896,
                      nodes_lost=["i2", "i7"], to="2x3"),
            migration(9, 109, "pipeline", pause_s=0.034, bytes_moved=2_408_448, nodes_joined=["i10", "i11"],
                      **{"from": "2x3", "to": "3x2"}),
        ],
    }  # fmt: skip


def write_job(journal: Journal, name: str, step: int = 124, pid: int | None = None) -> None:
    """A running job of this process, with metrics, events and a snapshot."""
    now_s = time.time()
    journal.create_job(name, SPEC, os.getpid() if pid is None else pid)
    journal.set_job_state(name, "running")
    for ago_s, kind, text, why in (
        (41.0, "joined", "8 nodes joined", ""),
        (40.2, "plan", "start 4x2", "highest liveput of 4 layouts that fit 8 nodes"),
        (22.0, "noticed", "i8 will be taken in 120 s", ""),
        (
            21.9,
            "migration",
            "intra-stage 4x2 -> 3x2, pause 8 ms",
            "i8 is going; 6 of 7 nodes hold their stage",
        ),
        (12.0, "lost", "i2, i7 are gone", "no warning; stage 1 has no holder left"),
        (10.7, "migration", "rollback to step 88, pause 1.3 s, 4.8 MB moved", "from the backup of step 80"),
        (3.1, "noticed", "i4 will be taken in 42 s", ""),
    ):
        journal.event(name, now_s - ago_s, kind, text, why)
    lines = [
        {"step": k, "loss": 2.9 + 2.6 * math.exp(-k / 40) + 0.06 * math.sin(k * 1.7), "samples": 16 * k,
         "time_s": k * 0.11, "generation": 9, "pipelines": 3, "stages": 2}
        for k in range(1, step + 1)
    ]  # fmt: skip
    (journal.job_folder(name) / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    journal.snapshot(name, snapshot(now_s, step))


def end_job(journal: Journal, name: str, state: str = "done") -> None:
    """Let a job end, with its result."""
    migrations = snapshot(0.0)["migrations"]
    journal.set_job_state(name, state, {
        "job": name, "state": state, "steps": 200, "samples": 3200, "samples_lost": 0, "samples_repeated": 0,
        "final_loss": 2.9134, "weights_sha256": "9f2c" * 16, "wall_s": 43.2, "usd": 0.0712,
        "usd_on_demand": 0.2373, "migrations": migrations, "why": "",
    })  # fmt: skip


if __name__ == "__main__":
    looked_at = Journal(Path(sys.argv[1]))
    write_job(looked_at, "demo")
    write_job(looked_at, "ended", 200)
    end_job(looked_at, "ended")
    print("press Enter to end")
    input()
