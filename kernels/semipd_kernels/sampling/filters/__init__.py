"""Where top-k and top-p end: sums of tiles below a few distances, then the exact one for each row."""
