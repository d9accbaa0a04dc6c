"""Replay: an event-driven fleet around the live controller, and the baseline policies."""
