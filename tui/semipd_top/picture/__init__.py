"""What a screen shows: one immutable picture of the daemon, and what it means."""
