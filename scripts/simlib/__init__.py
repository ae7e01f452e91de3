"""Shared parts of the simulator scripts: traces, the virtual clock, figures, comparison of policies."""
