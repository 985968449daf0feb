"""Experiments on the toy world: arms, seeds and matched compute.

`python -m benchmarks.science` runs and tabulates them.
"""
