"""Operators' interface: partition, targets, requests, events, drain."""
