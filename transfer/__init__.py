"""Reuse of a fit: feature extraction, freezing, adaptation."""
