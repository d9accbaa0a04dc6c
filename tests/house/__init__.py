"""Rules that the project keeps about itself."""
