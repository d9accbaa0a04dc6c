"""`parcae profile`: measure what planning needs to know of a model on this machine's device."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from parcae_cli.errors import FailedError, UsageError
from parcae_cli.new_file import check_new_file


def profile(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from `parcae models`, or a template of your own.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file to write. Default: MODEL.profile.json, here."),
    ] = None,
    micro_batch: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Samples of a micro-batch, may be repeated. Default: the template's.",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Every time is a median of so many.")
    ] = 15,
    threads: Annotated[
        int, typer.Option(metavar="N", min=1, help="Threads of a CPU; a job's workers have one.")
    ] = 1,
    force: Annotated[bool, typer.Option("--force", help="Write over a file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the profile as JSON.")] = False,
) -> None:
    """Measure MODEL on this machine's device (the first GPU, or the CPU) and write a profile.

    `parcae replay --profile FILE` and `parcae launch --profile FILE` plan by it. Try: parcae profile gpt-tiny
    """
    from parcae_cli.catalogue import load_model

    spec = load_model(model)
    if spec.gpt is None:
        raise UsageError(f"{model} can be replayed, not trained", "Models that can be: parcae models")
    out = Path(f"{spec.name}.profile.json") if out is None else out.expanduser()
    check_new_file(out, force, "--out")
    try:
        from runtime.engine.profiling import measure
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise FailedError(
            "profiling trains, and PyTorch is not installed", "pip install 'parcae-cli[train]'"
        ) from None
    from parcae_cli.render.output import print_json, text_console
    from parcae_cli.render.profile import profile_view

    named = str(Path(model).resolve()) if Path(model).is_file() else model
    sizes = tuple(dict.fromkeys(micro_batch or [spec.training.micro_batch]))
    print(f"measuring {spec.name}, {repeats} times ..", file=sys.stderr, flush=True)
    found = measure(spec, named, sizes, repeats, threads)
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if as_json:
        print_json({"file": str(out), **found})
        return
    console = text_console()
    console.print(profile_view(found))
    console.print(f"\nWritten: {out}", soft_wrap=True)
