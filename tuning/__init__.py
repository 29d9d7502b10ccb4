"""Many fits: spaces, search, early termination."""
