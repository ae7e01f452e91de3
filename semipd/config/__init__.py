"""Settings from file, environment and command line, resolved once, each with its origin."""
