"""Tokens and log-probabilities from logits, by kernels."""
