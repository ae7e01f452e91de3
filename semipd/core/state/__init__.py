"""The documents that tell what daemon and engine do: over HTTP, on the Unix socket, and to the dashboard.

Types only: at run time they are plain maps. Times that end in `_at_s`, and `at_s`, are Unix time in seconds;
those that end in `_at_ns`, and `at_ns`, are CLOCK_MONOTONIC, which only engine and daemon use between them.
"""
