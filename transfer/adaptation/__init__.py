"""The adaptation service: from rows of one domain with labels, and rows of another without, to a model for the other."""
