"""What a new instance is told at its birth: the startup script with its places filled."""

from __future__ import annotations

import shlex

from cloud.gcp.launch_record import KeyPair
from cloud.gcp.settings import GcpSettings

# Where the script says how it went. The variable is for images (and tests) that keep it elsewhere.
STATE = '"${PARCAE_STATE:-/var/lib/parcae}"'


def startup_script(settings: GcpSettings, host_key: KeyPair) -> str:
    """The script of the template for this fleet.

    The key is only as secret as the project's metadata: who may read instances there may pose as a node.
    """
    values = {
        "HOST_KEY": host_key.private.strip(),
        "HOST_PUBLIC_KEY": host_key.public.strip(),
        "PYTHON": settings.python,
        "PACKAGES": shlex.join(settings.packages),
    }
    script = settings.bootstrap
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script
