"""What takes a step: torch's optimisers, a nonlinear conjugate gradient, and the penalties that go with them."""
