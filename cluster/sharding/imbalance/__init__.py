"""Resampling of training rows: who is kept, who is copied, who is made."""
