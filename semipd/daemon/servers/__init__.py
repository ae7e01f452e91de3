"""The two servers, HTTP and the Unix socket, and their operations."""
