"""What a fit minimises: a value and a weight a row, of which the loop takes the weighted mean over the global batch."""
