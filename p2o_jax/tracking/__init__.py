"""Records of a run: metrics, samples, checkpoints and results."""
