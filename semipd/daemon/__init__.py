"""The daemon: accepts, validates, tokenizes, streams and supervises. Never imports torch."""
