"""A made-up daemon: an H200's day in small, deterministic, with a real one's frames, events and answers."""

from semipd_top.demo.source import DemoSource
from semipd_top.demo.world import DemoWorld

__all__ = ["DemoSource", "DemoWorld"]
