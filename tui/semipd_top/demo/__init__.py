"""A made-up daemon: an H200's day in small, deterministic, with the frames, events and answers of a real one."""

from semipd_top.demo.source import DemoSource
from semipd_top.demo.world import DemoWorld

__all__ = ["DemoSource", "DemoWorld"]
