"""Benchmarks: `python -m benchmarks.NAME`. Progress goes to standard error; the last line of
standard output is one JSON object.

peers/ times the tools a user would otherwise pick (its README tells how); those scripts stand
alone.
"""
