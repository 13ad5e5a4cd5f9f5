"""Who hosts an endpoint: Ray Serve, or the kernel itself."""
