"""Predictors for frameworks, one module each."""

__all__: list[str] = []
