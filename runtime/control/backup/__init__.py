"""The in-memory backup on the anchor, and the checkpoints that its process writes."""
