"""A lane: steps in pieces, launched on its streams, finished in order."""
