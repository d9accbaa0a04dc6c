"""The way to the nodes: SSH, links that survive their connections, and the fleet as a whole."""
