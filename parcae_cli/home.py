"""Where Parcae keeps its state on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def parcae_home() -> Path:
    """The folder of the journal and the jobs: PARCAE_HOME, or ~/.parcae. It may not exist yet."""
    named = os.environ.get("PARCAE_HOME")
    return Path(named).expanduser().resolve() if named else Path.home() / ".parcae"
