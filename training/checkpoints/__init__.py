"""Resumable state: what a fit writes down, so that a killed one ends as if it had not been."""
