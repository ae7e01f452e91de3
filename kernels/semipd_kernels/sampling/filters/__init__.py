"""Where top-k and top-p end: histograms over tiles of the vocabulary, then an interval for each row."""
