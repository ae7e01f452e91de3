"""Tiny models run faster on one thread, and the machine's other cores belong to the processes under test."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
