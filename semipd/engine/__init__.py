"""The engine: the coordinator and the process it lives in."""
