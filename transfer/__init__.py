"""Reuse of a fit: feature extraction, fine-tuning, adaptation."""
