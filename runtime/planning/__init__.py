"""Pure decisions: no clock, no I/O, no environment, no torch."""
