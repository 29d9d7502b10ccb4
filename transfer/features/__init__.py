"""Feature extraction: what the layers of a model give for rows, and which layer says most."""
