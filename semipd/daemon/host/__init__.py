"""The daemon as a process of its system: detached, supervised by systemd, within the limits it is given."""
