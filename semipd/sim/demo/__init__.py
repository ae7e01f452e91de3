"""A day of a made-up daemon, for the dashboard: its real parts over a simulated GPU."""
