"""GPU kernels. One operation, one folder: `__init__.py` checks and launches, `kernel.py` holds the Triton
kernels, `reference.py` the plain torch version that says what the operation means, `aot.py` what to compile
ahead of time. `dispatch.py` decides which of the two runs.

Importing an operation imports torch, never triton: that happens at the first launch.
"""
