"""A checkpoint on disk: its configuration, its files, and its weights in one flat buffer."""
