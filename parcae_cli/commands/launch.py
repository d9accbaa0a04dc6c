"""`parcae launch`: check what was asked for, run the job, say how it ended."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from parcae_cli.clouds import HERE, RENTED
from parcae_cli.errors import FailedError, Interrupted, UsageError
from parcae_cli.job_file import lay_under
from parcae_cli.launch_checks import (
    check_anchor,
    check_backup,
    check_cloud,
    check_fleet,
    check_forecaster,
    check_hosts,
    check_model,
    check_profile,
    check_trace,
    job_name,
    place_of,
    warn_of_backup,
)

if TYPE_CHECKING:
    from runtime.control.job.job import JobResult, LaunchRequest

POLICIES = ("parcae", "reactive", "checkpoint", "redundancy")


def launch(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from `parcae models`, or a .toml file of your own.")
    ],
    job: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Take MODEL and options from this file (parcae init makes one); those given here win.",
            is_eager=True,
            callback=lay_under,
        ),
    ] = None,
    cloud: Annotated[
        str,
        typer.Option(metavar="CLOUD", help="Where nodes are: `local` is this machine, `hosts` are yours."),
    ] = "local",
    hosts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Hosts only: the file that names your machines."),
    ] = None,
    fleet: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="For aws and gcp: settings laid over templates/fleets/CLOUD.toml."),
    ] = None,
    anchor: Annotated[
        str,
        typer.Option(
            metavar="here|cloud",
            help="Where launcher and backup run: here, or (aws, gcp) on a small machine rented on demand, so "
            "that training goes on when this one is shut.",
        ),
    ] = "here",
    region: Annotated[
        str | None,
        typer.Option(metavar="R[,R..]", help="For aws and gcp: where to rent; of several (aws) the best."),
    ] = None,
    nodes: Annotated[int, typer.Option(metavar="N", min=1, help="How many nodes are wanted.")] = 8,
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            metavar="G", min=1, max=64, help="GPUs of each node, a worker each. Default: what it has, or 1."
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Local only: a file of which nodes there are, and when."),
    ] = None,
    speed: Annotated[float, typer.Option(metavar="X", help="Seconds of the trace per second of time.")] = 1.0,
    notice: Annotated[
        float,
        typer.Option(
            metavar="S", min=0, help="Seconds of the trace between a warning and the kill; 0: no warning."
        ),
    ] = 120.0,
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Train this many steps.")] = 200,
    policy: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How to use the fleet: parcae; reactive (migrates, never looks ahead); checkpoint (stops at "
            "every change, restarts all workers from the last checkpoint); redundancy (local: a node also "
            "keeps, updates and runs forward its successor's stage, and works it when that node goes).",
        ),
    ] = "parcae",
    forecaster: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How to forecast availability; see `parcae replay --help`."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Local and hosts: plan by what `parcae profile` measured of the model."
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option(metavar="S", help="Plan every so many seconds (of the trace).")
    ] = 60.0,
    lookahead: Annotated[int, typer.Option(metavar="N", min=1, help="Plan this many intervals ahead.")] = 12,
    backup: Annotated[
        str,
        typer.Option(metavar="HOW", help="What the backup is sent: state, gradients (of each step) or none."),
    ] = "state",
    backup_every: Annotated[
        int, typer.Option(metavar="N", min=1, help="Steps between backups of the state.")
    ] = 10,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|URL",
            help="Keep durable checkpoints in this folder, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.",
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Steps between durable checkpoints. Default: 100; with --policy checkpoint by Young's rule.",
        ),
    ] = None,
    checkpoint_keep: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many of this job's checkpoints are kept.")
    ] = 3,
    start_from: Annotated[
        str | None,
        typer.Option("--from", metavar="CHECKPOINT", help="Continue this checkpoint, at any layout."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB|URL",
            help="What to train on, may be repeated: a glob of files, which are sent to the nodes, or of "
            "objects in s3:// or gs://; text, or tokens in .bin or .npy. Default: Python's standard library.",
        ),
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Take the loss of held-out samples every N steps; 0: never. Default: the template's.",
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Decides the weights and the order of samples.")
    ] = 0,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The job's name. Default: the model and a number.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="USD", help="Stop before spending more than this, in USD.")
    ] = None,
    max_hours: Annotated[
        float | None, typer.Option(metavar="H", help="Stop before having run for longer than this.")
    ] = None,
    max_price_per_hour: Annotated[
        float | None, typer.Option(metavar="USD", help="Rent no more than this costs in an hour, in USD.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Rent without asking.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return when the job has started.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print the plan; rent nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train MODEL on spot instances, and keep training while they come and go.

    Ctrl-C ends the job and everything it started, at an anchor too.
    """
    from parcae_cli.shadow import refuse_modules_in

    refuse_modules_in(Path.cwd())
    check_cloud(cloud, trace)
    settings = check_hosts(cloud, hosts) or check_fleet(cloud, fleet, region)
    limits = (("--budget", budget), ("--max-hours", max_hours), ("--max-price-per-hour", max_price_per_hour))
    for option, value in (("--speed", speed), ("--interval", interval), *limits):
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{option} {value:g}: must be above 0")
    if policy not in POLICIES:
        raise UsageError(
            f"--policy {policy}: a job can follow {', '.join(POLICIES[:-1])} or {POLICIES[-1]}",
            "Others: parcae replay",
        )
    if policy == "redundancy" and (cloud not in HERE or (gpus_per_node or 1) > 1):
        raise UsageError(
            "--policy redundancy is for --cloud local, with one worker a node: copies go over gloo, not NCCL",
            "Leave out --cloud and --gpus-per-node, or take another --policy",
        )
    check_backup(backup, checkpoint, start_from, policy)
    check_anchor(anchor, cloud, checkpoint, start_from, data)
    check_model(model)
    check_profile(profile, cloud)
    check_forecaster(forecaster)

    from parcae_cli.catalogue import load_measured_costs
    from parcae_cli.home import parcae_home
    from parcae_cli.training_inputs import corpus_of, training_template
    from runtime.control.job.job import LaunchRequest

    home, template = parcae_home(), training_template(model, eval_every, profile)
    corpus, objects = corpus_of(data or [], template)
    request = LaunchRequest(
        name=job_name(name, model, home),
        model=str(Path(model).resolve()) if model.endswith(".toml") else model,
        home=home,
        cloud=cloud,
        fleet=settings,
        anchor=anchor,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        trace=check_trace(trace),
        speed=speed,
        steps=steps,
        policy=policy,
        forecaster=forecaster,
        seed=seed,
        notice_s=notice,
        interval_s=interval,
        lookahead=lookahead,
        backup=backup,
        backup_every=backup_every,
        budget_usd=budget,
        max_hours=max_hours,
        max_usd_per_hour=max_price_per_hour,
        checkpoint=place_of("--checkpoint", checkpoint),
        checkpoint_every=checkpoint_every or (0 if policy == "checkpoint" else 100),
        checkpoint_keep=checkpoint_keep,
        start_from=place_of("--from", start_from, must_exist=True),
        corpus=corpus,
        objects=objects,
        template=template,
        cost_table=load_measured_costs(),
    )
    if dry_run:
        from parcae_cli.render.job import print_request

        plan = planned(request)
        warn_of_backup(request)
        print_request(request, as_json, plan)
    elif detach:
        from parcae_cli.detach import run_detached

        confirm(request, yes)
        run_detached(home, request.name, [*sys.argv[1:], "--yes", "--name", request.name], as_json)
    else:
        confirm(request, yes)
        finish(carry_out(request), as_json)


def planned(request: LaunchRequest) -> Mapping[str, Any] | None:
    """What the cloud would be asked for; None for clouds that cost nothing.

    Raises:
        InputError: the job could never begin.
    """
    from runtime.control.job.launch import check_nodes
    from runtime.control.providers import cloud_plan
    from runtime.planning.model import parse_model

    spec = parse_model(request.template, request.model)
    plan = cloud_plan(request, spec)
    if plan is None and request.cloud in HERE:
        check_nodes(request, spec)
    return plan


def confirm(request: LaunchRequest, yes: bool) -> None:
    """Ask before money is spent.

    Raises:
        UsageError: nobody is there to be asked.
        Interrupted: the answer was no.
    """
    if yes or request.cloud not in RENTED:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"--cloud {request.cloud} spends money and there is nobody to ask", "Give --yes, or --dry-run"
        )
    from parcae_cli.render.job import print_plan

    plan = planned(request)
    assert plan is not None
    print_plan(plan)
    warn_of_backup(request)
    if not typer.confirm("Rent this?", err=True):
        raise Interrupted("nothing was rented")


def carry_out(request: LaunchRequest) -> JobResult:
    """Run the job to its end, in this process, and show how it goes on stderr."""
    from parcae_cli.render.progress import shown_progress
    from runtime.control.job.launch import run

    with shown_progress(request.home, request.name):
        if request.anchor == "cloud":
            from parcae_cli.anchored import carry_out_at_anchor

            return carry_out_at_anchor(request)
        return run(request)


def finish(result: JobResult, as_json: bool) -> None:
    """Print how the job ended.

    Raises:
        Interrupted: it was ended from outside.
        FailedError: it did not reach its last step.
    """
    from parcae_cli.render.job import print_result

    print_result(result, as_json)
    if result.state == "interrupted":
        raise Interrupted(f"job {result.job} after step {result.steps}; nothing of it is left running")
    if result.state != "done":
        why = result.why or "it did not reach its last step"
        raise FailedError(f"job {result.job}: {why}", f"See: parcae logs {result.job}")
