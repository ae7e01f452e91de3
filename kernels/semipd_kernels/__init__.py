"""GPU kernels, one file per operation: its launcher, its Triton kernel and its plain torch reference.

Empty so far: the CPU device computes with torch alone.
"""
