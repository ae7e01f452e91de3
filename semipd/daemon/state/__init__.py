"""What handlers share, and the daemon's state at one moment."""
