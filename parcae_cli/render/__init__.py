"""How results and live views look: text with rich, or JSON."""
