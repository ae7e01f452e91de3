"""Training of the demo model: its corpus and its card."""
