"""Frames and messages: length-prefixed msgpack maps, the same on every socket."""

PROTOCOL_VERSION = 1
