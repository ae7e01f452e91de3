"""How a split is chosen: what is predicted for it, and the two policies."""
