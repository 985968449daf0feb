"""P²O in JAX: GRPO on verifiable rewards, joined with GEPA prompt evolution on the questions that GRPO cannot learn from.

Dimension letters, used as suffixes of array names (`logp_old_plain_BT` has axes B, T in that order):

    Q questions in a batch     G rollouts per question     B sequences or rows        T tokens in a row
    P prompt tokens            R response tokens           L layers                   D model width
    H query heads              K key/value heads           C channels per head        F MLP width
    V vocabulary               S cache positions           Z templates                N flat list of anything
"""

__version__ = "0.1.0"
