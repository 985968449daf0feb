"""How good a policy is: held-out questions during training, and what benchmarks' samples amount to."""
