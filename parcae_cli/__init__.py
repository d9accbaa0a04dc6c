"""The `parcae` command: parses, calls `runtime`, and renders the result."""

__version__ = "0.1.0"
