"""What `gpu_contact.py` and `gpu_bench.py` share."""
