"""What a model's answers come from: importance, attributions and dependence, in raw columns."""
