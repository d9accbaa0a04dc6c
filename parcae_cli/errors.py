"""What can go wrong for a user, and the one place that turns any error into a line and an exit code.

Exit codes: 0 done, 1 failed, 2 usage, 3 no capacity, 4 credentials or quota, 5 something may still be
running, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys

DONE = 0
FAILED = 1
USAGE = 2
NO_CAPACITY = 3
CREDENTIALS_OR_QUOTA = 4
MAY_BE_RUNNING = 5
INTERRUPTED = 130


class ParcaeError(Exception):
    """An error that is shown as one line: what is wrong and where, then the next thing to do."""

    exit_code = FAILED

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step

    def __str__(self) -> str:
        return f"{self.what.rstrip('.?')}. {self.next_step}" if self.next_step else self.what


class FailedError(ParcaeError):
    """The work was tried and did not succeed."""


class UsageError(ParcaeError):
    """What was asked for cannot be: a wrong option, file or name."""

    exit_code = USAGE


class MayBeRunning(ParcaeError):
    """We cannot prove that everything ended."""

    exit_code = MAY_BE_RUNNING


class Interrupted(ParcaeError):
    """Ended by Ctrl-C or a signal."""

    exit_code = INTERRUPTED


# The exit codes of errors that are not the command line's own. They are looked up among loaded modules: an
# error whose module was never imported cannot be the one at hand, and start-up stays free of imports.
_CODES: tuple[tuple[str, str, int], ...] = (
    ("cloud.provider", "NoCapacityError", NO_CAPACITY),
    ("cloud.provider", "QuotaError", CREDENTIALS_OR_QUOTA),
    ("cloud.provider", "CredentialsError", CREDENTIALS_OR_QUOTA),
    ("cloud.provider", "MaybeStillRunningError", MAY_BE_RUNNING),
    ("cloud.provider", "CloudError", FAILED),
    ("runtime.planning.errors", "InputError", USAGE),
    ("cloud.hosts.inventory", "InventoryError", USAGE),
    ("runtime.control.backup.checkpoint_target", "StoreError", FAILED),
    ("runtime.control.job.journal", "JobExistsError", USAGE),
    ("runtime.control.job.journal", "UnknownJobError", USAGE),
    ("runtime.control.job.journal", "JournalError", FAILED),
    ("runtime.control.job.past", "NotResumableError", USAGE),
)


def describe(error: BaseException) -> tuple[int, str]:
    """The exit code of any error, and the one line that explains it."""
    if isinstance(error, ParcaeError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    for module, name, code in _CODES:
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None and isinstance(error, kind):
            return code, str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return FAILED, f"{os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FAILED, f"{error.strerror}: free some, or write to another disk"
    if "sqlite3" in sys.modules and isinstance(error, sys.modules["sqlite3"].Error):
        return FAILED, f"journal.db: {error}. Is the disk full, or the folder of PARCAE_HOME read-only?"
    return FAILED, _bug(error)


def _bug(error: BaseException) -> str:
    import traceback

    where = ""
    if frames := traceback.extract_tb(error.__traceback__):
        where = f" at {os.path.relpath(frames[-1].filename)}:{frames[-1].lineno}"
    said = " ".join(str(error).split())
    return (
        f"internal error: {type(error).__name__}: {said}{where}. "
        "This is a bug in Parcae: run it again with PARCAE_DEBUG=1 and report what it prints"
    )


def report(error: BaseException) -> int:
    """Explain an error on stderr and return its exit code. With PARCAE_DEBUG=1 the traceback comes first."""
    code, line = describe(error)
    if os.environ.get("PARCAE_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    label = "interrupted" if code == INTERRUPTED else "error"
    if line == label:
        line = ""
    start = f"\033[1;31m{label}\033[0m" if colour else label
    print(f"parcae: {start}{': ' if line else ''}{line}", file=sys.stderr, flush=True)
    return code
