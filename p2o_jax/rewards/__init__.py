"""Verifiable rewards: the final answer of a response, compared with the reference answer.

`boxed` finds the answer, `grade` compares it. `grade` asks `choices` and `units`, reads formulas by
`plain_text` and `reading`, and compares them by `compare` and `formulas`. `normalize`, `numbers`
and `characters` decide plain answers without SymPy.

Uses no JAX.
"""
