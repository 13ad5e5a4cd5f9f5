"""Predictors for frameworks, one module each."""
