"""Questions: read from files, put in order, rendered as prompts. Plain Python, no JAX."""
