"""What works, and why, on the built-in world: arms, seeds and matched compute. `python -m
benchmarks.science` runs and tabulates them.
"""
