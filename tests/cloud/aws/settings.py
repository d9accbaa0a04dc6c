"""The shipped settings, as tests change them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from cloud.aws.settings import AwsSettings

TEMPLATES = Path(__file__).resolve().parents[3] / "templates"


def aws_settings(**changes: Any) -> AwsSettings:
    """Those of templates/fleets/aws.toml, with `times` laid over the table of that name."""
    table = tomllib.loads((TEMPLATES / "fleets" / "aws.toml").read_text())
    table["bootstrap"] = (TEMPLATES / "bootstrap" / "aws.sh").read_text()
    times = {**table["times"], **changes.pop("times", {})}
    return AwsSettings.parse({**table, **changes, "times": times})
