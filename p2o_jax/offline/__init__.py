"""Work with a model outside training: sample, evaluate, score, and export the policy of a run."""
