"""Calls of the CUDA driver, what they hand out, and what their failures mean."""
