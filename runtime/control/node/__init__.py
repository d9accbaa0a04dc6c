"""What runs on a node: the agent, its workers, and the watch on the metadata service."""
