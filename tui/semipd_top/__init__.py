"""The dashboard of a running daemon. It talks over the Unix socket and never imports torch."""
