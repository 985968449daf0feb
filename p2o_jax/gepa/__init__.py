"""GEPA, the evolution of prompt templates, as plain Python over two callables: `evaluate(pairs)`
and `reflect(prompts)`.

`search` runs one phase; `state` holds its pure steps (init, select, propose, gate, promote). Each
other file is one rule of the algorithm: sampling (what is drawn), pareto (who may be a parent),
reflection (what the reflecting model reads), filters (which replies become templates), budget (when
it ends), cover (what comes out), journal (how a killed phase goes on), export (how others open the
result) and api (replies of an endpoint elsewhere).
"""

from p2o_jax.gepa.export import to_gepa_result
from p2o_jax.gepa.journal import Journal, JournalMismatch, resume
from p2o_jax.gepa.reflection import compact_prompt
from p2o_jax.gepa.search import STATS, is_due, reasons, search

__all__ = [
    "STATS",
    "Journal",
    "JournalMismatch",
    "compact_prompt",
    "is_due",
    "reasons",
    "resume",
    "search",
    "to_gepa_result",
]
