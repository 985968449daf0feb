"""Verifiable rewards: the last box of a response, compared with the reference answer.

Uses no JAX.
"""
