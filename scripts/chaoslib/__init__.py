"""What scripts/chaos.py is made of: a daemon to torment, load for it, faults, and a judge."""
