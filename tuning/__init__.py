"""Many fits: spaces of values, search among them, early termination."""
