"""Models as lists of layers, so that they can be cut anywhere."""
