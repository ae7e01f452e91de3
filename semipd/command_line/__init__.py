"""What semipd-daemon, semipd-client and semipd-top share: exit codes, arguments, standard streams."""
