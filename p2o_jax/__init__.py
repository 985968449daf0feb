"""P²O in JAX: GRPO on verifiable rewards, with GEPA prompt evolution for the questions that GRPO
cannot learn from.

Axis letters. A suffix of an array's name lists its axes in order: `logp_old_BT` has the axes B and
T. One letter has one meaning everywhere. A lower-case letter is a part of the axis of its capital:
`t` is a chunk of the T tokens, `c` one half of the C channels. A digit is an axis of that size.

    A  rows of a KV cache             K  key/value heads              S  key or cache positions
    B  sequences, rows or slots       L  layers                       T  tokens in a row
    C  channels of a head             M  prompts in a prompt cache    U  micro-batches
    D  model width                    N  flat list of anything        V  vocabulary
    G  rollouts of a question         P  prompt tokens                W  parts of a batch
    H  query heads                    Q  questions                    Z  templates (candidates)
    I  inputs of a projection         R  response tokens
    J  rank of an adapter             O  outputs of a projection

Glossary.

    template       instructions around a question; the empty template asks it plainly
    rollout        one sampled and scored response to a question under a template
    group          the G rollouts of one question; advantages compare them
    verdict        the verifier's scores of a response
    hard question  a question that mining selects because its group (almost) never succeeds
    prompt phase   a GEPA search over templates, run after an epoch on its hard questions
    assignment     which template each rollout of a hard question gets in the next epoch
    distillation   training a response sampled under a template on the plain prompt
    slot           one sequence of the decode batch; it is refilled when its rollout ends
    prompt cache   the KV cache of prompts, shared by all rollouts of a prompt
    decode chunk   the decode steps of one device call, after which finished rollouts reach the host
    wave           requests that are sampled together with one prompt cache
"""

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from p2o_jax.run import Run as Run

__version__ = "0.1.0"


def _leave_current_folder() -> None:
    """Removes the current folder from the import path under `python -m p2o_jax.COMMAND`.

    Python puts it first, so a file such as jax.py in it would be imported instead of JAX. A folder
    named in PYTHONPATH stays. Importing the package changes nothing: `python -m` replaces argv[0]
    only after it has imported p2o_jax.
    """
    argv = getattr(sys, "argv", [])
    is_command = (
        argv[:1] == ["-m"]
        and sys.orig_argv[-len(argv)].removeprefix("-m").partition(".")[0] == __name__
    )
    if not is_command or sys.flags.safe_path:
        return
    folder = sys.path.pop(0)
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    # such as PYTHONPATH=$UNSET:/folder
    if "" in named and folder not in map(os.path.abspath, filter(None, named)):
        sys.path[:] = [path for path in sys.path if path != folder]


_leave_current_folder()


def __getattr__(name: str) -> Any:
    """`Run`, imported when it is first asked for: the package itself imports nothing heavy."""
    if name != "Run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from p2o_jax.run import Run

    return Run
