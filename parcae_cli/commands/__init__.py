"""One file for each command: parse, call, return a frozen result."""
