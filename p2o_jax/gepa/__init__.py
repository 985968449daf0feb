"""GEPA: evolution of prompt templates, as plain Python over two callables, `evaluate(pairs)` and
`reflect(prompts)`.

`search` runs one phase, and `steps` holds its pure steps (init, select, propose, gate, promote).
Each other module is one part of the algorithm: pool (what a phase begins with and leaves), draws
(what is random), pareto (who may be a parent), reflection (what the reflecting model reads),
replies (the templates in what it writes), filters and leaks (which of them are rejected), budget
(when a phase ends), cover (its result), journal (how an interrupted phase resumes), export (the
`gepa` package's format). Replies of a remote endpoint come from api, by way of chat_completions
(their format) and transport (the request).
"""

from p2o_jax.gepa.export import to_gepa_result
from p2o_jax.gepa.journal import Journal, JournalMismatch, resume
from p2o_jax.gepa.pool import carried
from p2o_jax.gepa.reflection import compact_prompt
from p2o_jax.gepa.search import STATS, is_due, reasons, search

__all__ = [
    "STATS",
    "Journal",
    "JournalMismatch",
    "carried",
    "compact_prompt",
    "is_due",
    "reasons",
    "resume",
    "search",
    "to_gepa_result",
]
