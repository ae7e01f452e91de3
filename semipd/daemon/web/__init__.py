"""HTTP beneath the routes: connections, errors, bodies, the OpenAPI document."""
