"""How well a model predicts text that has nothing to do with the task: what training forgets."""

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.commands import call

NEUTRAL = (
    "The river rises in the hills north of the town and reaches the sea after sixty miles. In"
    " spring its water is high, and boats can travel as far as the old mill.",
    "She put the letters back into the box, closed the lid, and looked out of the window. It had"
    " stopped raining, and the street was quiet again.",
    "Bread is made from flour, water, salt and yeast. The dough has to rest in a warm place until"
    " it has doubled in size, and then it is baked in a hot oven.",
    "The company said on Monday that it would open two new factories next year and hire about four"
    " hundred people. Its shares rose slightly in early trading.",
    "A prime number has no divisors other than one and itself. There are infinitely many of them,"
    " as was already known in antiquity.",
    "When the train arrived, most of the passengers were asleep. Only the boy in the last carriage"
    " saw the lights of the station and woke his father.",
    "Bees visit flowers to collect nectar and pollen. While they do so, they carry pollen from one"
    " plant to another, so that seeds can form.",
    "Please read the instructions carefully before you start. If a part is missing or damaged, do"
    " not use the machine, and call our service number.",
)


def nll(model: Path) -> float:
    """Returns the mean negative log-likelihood of a token of NEUTRAL under a model, in nats.

    Raises:
        ConfigError: the command failed; with the end of its output.
    """
    from p2o_jax.data.chat import load_tokenizer

    tokenizer = load_tokenizer(model)
    rows = [tokenizer.encode(text) for text in NEUTRAL]
    width = max(map(len, rows))
    ids = np.array([row + [0] * (width - len(row)) for row in rows])
    mask = np.arange(width)[None] < np.array([[len(row)] for row in rows])
    with tempfile.TemporaryDirectory(prefix="neutral-") as folder:
        tokens, out = Path(folder) / "tokens.npz", Path(folder) / "out.npz"
        np.savez(tokens, input_ids=ids, attention_mask=mask.astype(np.int64))
        call("p2o_jax.score", f"--model={model}", f"--tokens={tokens}", f"--out={out}")
        logps = np.load(out)["token_logprobs"]
    return -float(logps[:, 1:][mask[:, 1:]].mean())
