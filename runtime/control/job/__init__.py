"""One job from start to end, and what it leaves on the disk: journal, metrics, events, checkpoints."""
