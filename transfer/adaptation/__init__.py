"""Adaptation to a target domain: choosing among models without its labels, and what few labels can settle."""
