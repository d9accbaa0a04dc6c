"""`python -m parcae_cli.backup --control-fd N --listen-fd M`: the process that holds a job's backup."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and serve until the launcher is gone."""
    parser = argparse.ArgumentParser(prog="python -m parcae_cli.backup", description=__doc__)
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parsed = parser.parse_args(arguments)

    from runtime.control.backup.service import main as serve
    from runtime.control.node.priority import TRAINING, give_way

    give_way(TRAINING)
    serve(parsed.control_fd, parsed.listen_fd)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
