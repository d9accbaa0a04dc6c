"""What a new instance is told at its birth: the startup script with its places filled."""

from __future__ import annotations

import shlex

from cloud.gcp.launch_record import KeyPair
from cloud.gcp.settings import GcpSettings

# Where the script says how it went. The variable is for images (and tests) that keep it elsewhere.
STATE = '"${PARCAE_STATE:-/var/lib/parcae}"'
LEASE = f"{STATE}/lease/held"


def startup_script(settings: GcpSettings, host_key: KeyPair, dead_man_s: float = 0.0) -> str:
    """The script of the template for this fleet; `dead_man_s` 0: no switch but Compute Engine's own.

    The key is only as secret as the project's metadata: who may read instances there may pose as a node.
    """
    values = {
        "HOST_KEY": host_key.private.strip(),
        "HOST_PUBLIC_KEY": host_key.public.strip(),
        "PYTHON": settings.python,
        "PACKAGES": shlex.join(settings.packages),
        "DEAD_MAN_S": f"{dead_man_s:.0f}",
        "DEAD_MAN_CHECK_S": f"{min(60.0, dead_man_s / 4):g}",
    }
    script = settings.bootstrap
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script
