"""Seeing a domain shift: whether two sets of rows differ, in which columns, in which classes, and what it means."""
