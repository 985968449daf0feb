"""A run's programs compiled for TPUs that are not there: memory, work, traffic, and what a step
would take at best.

`python -m p2o_jax.plan --config C --topology v5p:4x4x4` (see `__main__`).
"""
