"""P²O in JAX: GRPO on verifiable rewards, joined with GEPA prompt evolution on the questions that
GRPO cannot learn from.

Dimension letters, used as suffixes of array names (`logp_old_plain_BT` has axes B, T in that
order):

    Q questions in a batch     G rollouts per question     B sequences or rows        T tokens in a row
    P prompt tokens            R response tokens           L layers                   D model width
    H query heads              K key/value heads           C channels per head        F MLP width
    V vocabulary               S cache positions           Z templates                N flat list of anything
"""

import os
import sys

__version__ = "0.1.0"


def _leave_current_folder() -> None:
    """Under `python -m p2o_jax.COMMAND`, takes the current folder off the import path, where it
    comes first.

    Else a file like jax.py there would be imported in place of JAX. A folder that PYTHONPATH names
    stays. Nothing changes where the package is only imported: `python -m` has not replaced argv[0]
    yet when it imports p2o_jax.
    """
    argv = getattr(sys, "argv", [])
    started = (
        argv[:1] == ["-m"]
        and sys.orig_argv[-len(argv)].removeprefix("-m").partition(".")[0] == __name__
    )
    if not started or sys.flags.safe_path:
        return
    folder = sys.path.pop(0)
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # as in PYTHONPATH=$UNSET:/folder
    if "" in named and folder not in map(os.path.abspath, filter(None, named)):
        sys.path[:] = [path for path in sys.path if path != folder]


_leave_current_folder()
