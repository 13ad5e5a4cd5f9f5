"""Who hosts an endpoint: Ray Serve, or the kernel itself."""

__all__: list[str] = []
