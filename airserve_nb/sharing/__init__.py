"""Open one deployment to other machines: a small proxy in a process of its own, behind a token."""

__all__: list[str] = []
