"""What planning raises when its input is wrong."""

from __future__ import annotations


class InputError(ValueError):
    """A trace, profile or model that cannot be used.

    The message names the file and the line or key, and what to do about it; people see it as it is,
    without a traceback.
    """
