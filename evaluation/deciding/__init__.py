"""Decisions that pay: costs by name, calibrated probabilities, and the threshold."""
