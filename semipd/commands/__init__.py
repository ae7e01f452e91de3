"""The commands semipd-daemon and semipd-client, and status as text."""
