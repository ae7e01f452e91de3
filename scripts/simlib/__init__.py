"""Shared parts of the scripts that compare policies in simulation: figures, plots."""
