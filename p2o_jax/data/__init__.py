"""Reads questions from files and data sets, orders them, and renders prompts. Uses no JAX."""
