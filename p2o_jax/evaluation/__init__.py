"""How good a policy is: on held-out questions in training, and on benchmarks."""
