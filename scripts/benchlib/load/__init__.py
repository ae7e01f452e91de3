"""The load of a benchmark: what to send, when, where to, and what came of it."""
