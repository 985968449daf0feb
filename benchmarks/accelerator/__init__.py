"""What an accelerator does with this package, in a few minutes: `python -m benchmarks.accelerator`.

`parts` lists what is measured and runs each in a process of its own, `speed`, `kernels`,
`sampling`, `update` and `quickstart` measure, `bounds` has the arithmetic.
"""
