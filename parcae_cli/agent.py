"""`python -m parcae_cli.agent`: start the agent of the node that this runs on, reach it, or end it.

Imports nothing heavy.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing takes longer to load than some starts do
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def main(arguments: Sequence[str] | None = None, told: Callable[[int], None] | None = None) -> int:
    """Parse the command line and the node's own settings from the environment; returns the exit code.

    With `told` this process itself becomes the agent, and that is where the code goes.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--daemon" in words:
        from parcae_cli.nursery import start_agent

        if (code := start_agent(words)) is not None:
            return code

    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(prog="python -m parcae_cli.agent", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--daemon", action="store_true", help="start: detach, print one JSON line")
    parser.add_argument("--adopt", action="store_true", help="with --daemon: keep the one that lives here")
    action.add_argument("--attach", type=Path, metavar="SOCKET", help="carry standard input and output to it")
    action.add_argument("--end", action="store_true", help="end what runs here, remove the work folder")
    action.add_argument("--receive", action="store_true", help="take data from standard input")
    parser.add_argument("--folder", type=Path, default=Path(), help="work folder of the node")
    parser.add_argument("--lease-s", type=float, default=60.0, help="leave when nobody was heard for so long")
    parser.add_argument("--poll-s", type=float, default=5.0, help="period of looking for notices")
    parser.add_argument("--mute-s", type=float, default=3.0, help="kill a worker that is silent for so long")
    parser.add_argument("--gpus", type=int, default=1, help="start a worker for each of so many GPUs")
    parsed = parser.parse_args(words)

    if parsed.attach is not None:
        from runtime.control.node.bridge import attach

        return attach(parsed.attach)

    lease_file = Path(os.environ["PARCAE_LEASE_FILE"]) if "PARCAE_LEASE_FILE" in os.environ else None
    if parsed.receive:
        from runtime.control.node.receiver import receive

        return receive(lease_file)

    from runtime.control.node.agent import AgentOptions
    from runtime.control.node.daemon import end_node, start_daemon

    folder = parsed.folder.resolve()
    environment = os.environ
    options = AgentOptions(
        folder=folder,
        log=Path(environment.get("PARCAE_LOG", folder / "agent.log")),
        register=Path(environment.get("PARCAE_REGISTER", folder / "pgids")),
        engine=environment.get("PARCAE_ENGINE", "runtime.engine.worker"),
        zygote=Path(environment["PARCAE_ZYGOTE"]) if "PARCAE_ZYGOTE" in environment else None,
        metadata_url=environment.get("PARCAE_METADATA", environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")),
        metadata_flavor=environment.get("PARCAE_METADATA_FLAVOR", "aws"),
        notice_s=float(environment.get("PARCAE_NOTICE_S", "30")),
        poll_s=parsed.poll_s,
        lease_s=parsed.lease_s,
        mute_s=parsed.mute_s,
        gpus=parsed.gpus,
        lease_file=lease_file,
    )
    return end_node(options) if parsed.end else start_daemon(options, parsed.adopt, told)


if __name__ == "__main__":
    raise SystemExit(main())
