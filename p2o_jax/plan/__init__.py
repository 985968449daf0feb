"""Plans a run without its hardware: memory, operations, traffic, and a lower bound on step time.

Compiles a run's programs for TPUs or GPUs that are not present. Run it with
`python -m p2o_jax.plan --config C --topology v5p:4x4x4` (see `__main__`).
"""
