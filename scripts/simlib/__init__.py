"""Shared parts of the scripts that compare policies in simulation: grid of rates, figures, plots."""
