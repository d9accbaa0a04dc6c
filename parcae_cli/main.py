"""The entry of the `parcae` command: runs one, and turns whatever goes wrong into a line and a code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from parcae_cli.errors import FAILED, INTERRUPTED, USAGE, UsageError, report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never raises, never shows a traceback."""
    try:
        # `parcae down`, a closing terminal and a batch system end us with SIGTERM: it cleans up like Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:
        # The reader (`parcae logs | head`) has what it wanted. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else FAILED
    except BaseException as error:  # noqa: BLE001  # whatever it is, the user gets one line
        return report(error)


def _run(arguments: list[str]) -> int:
    from parcae_cli.app import UsageProblem, command
    from parcae_cli.shadow import refuse_shadowed_packages

    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a console without Unicode gets question marks, no error
    refuse_shadowed_packages()
    try:
        code = command().main(arguments, prog_name="parcae", standalone_mode=False)
    except UsageProblem as problem:
        return _explain(problem)
    # Outside its stand-alone mode typer returns the code of `Exit`, also for a Ctrl-C, or the result.
    if code == INTERRUPTED:
        return report(KeyboardInterrupt())
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _explain(problem: Exception) -> int:
    """Say what typer found wrong with the arguments, and where the help is."""
    context = getattr(problem, "ctx", None)
    path = context.command_path if context is not None else "parcae"
    message = " ".join(getattr(problem, "format_message", problem.__str__)().split())
    if type(problem).__name__ == "NoArgsIsHelpError":
        return USAGE  # the help has been printed
    return report(UsageError(message, f"See: {path} --help"))


if __name__ == "__main__":
    sys.exit(main())
