"""From a Config to the components of a run."""
