"""Where the dashboard's facts come from: a daemon, a recording, or the demo."""
