"""Verifiable rewards: the last box of a response, judged against the reference answer. Plain
Python, no JAX.
"""
