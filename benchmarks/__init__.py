"""Benchmarks: `python -m benchmarks.NAME`.

Progress goes to standard error. The last line of standard output is a JSON object. The scripts in
peers/ time comparable tools, and do not import this package (see their README).
"""
