"""What `gpu_check.py` and `gpu_bench.py` share."""
