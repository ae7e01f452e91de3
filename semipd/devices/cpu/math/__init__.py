"""What a CPU computes a pass with: packed matrices, decode attention in pool order."""
