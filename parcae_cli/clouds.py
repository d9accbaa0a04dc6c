"""Which clouds there are, for the command line."""

from __future__ import annotations

# Clouds that cost money: they have settings, a plan to confirm, and something to sweep up at their API.
RENTED = ("aws", "gcp")
# Those where the launcher, too, can run on a machine that is rented.
ANCHORED = ("aws", "gcp")
# Those that are processes of this machine: a trace may decide which nodes there are; they have no terminal.
HERE = ("local",)
# Those whose machines are the user's own, named in a file.
LISTED = ("hosts",)
CLOUDS = (*HERE, *LISTED, *RENTED)
