"""Shared parts of the comparison of policies in simulation: scenarios, plan, searches, tables, plots."""
