"""What bench_serving.py and bench_peers.py share."""
