"""Distances, masses and random numbers."""
