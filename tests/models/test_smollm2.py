"""The converted SmolLM2 of examples/laptop against what transformers makes of its GGUF file.

tests/golden/smollm2.json was written by transformers 5.24.0 and PyTorch 2.13.0 in float32, which
read the GGUF file themselves: nothing of examples/laptop/smollm2.py took part. The tests are
skipped where the model has not been downloaded (`python -m examples.laptop`).
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p2o_jax.config import ChatConfig
from p2o_jax.data import chat
from p2o_jax.models import hf, hf_config, sharding, transformer

ROOT = Path(__file__).parents[2]
MODEL = Path(os.environ.get("P2O_SMOLLM2") or ROOT / ".cache/laptop/smollm2-135m-instruct")
GOLDEN = json.loads((ROOT / "tests/golden/smollm2.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.skipif(
    not (MODEL / "config.json").is_file(), reason=f"{MODEL} is not there"
)


def test_tokens_and_the_chat_template_equal_golden():
    tokenizer = chat.load_tokenizer(MODEL)
    for row in GOLDEN["rows"]:
        assert tokenizer.encode(row["text"]) == row["tokens"], row["text"]
        assert tokenizer.decode(row["tokens"]) == row["text"]
    rendered = chat.Chat(tokenizer, ChatConfig()).render_text(GOLDEN["chat"]["question"])
    assert list(rendered) == GOLDEN["chat"]["tokens"]


def test_logps_equal_golden():
    spec = hf_config.read_spec(MODEL)
    mesh = sharding.make_mesh((1, 1, 1), devices=jax.devices()[:1])
    params = hf.load(MODEL, spec, sharding.param_shardings(spec, mesh, sharding.LEARNER), "float32")
    rows = GOLDEN["rows"]
    longest = max(len(row["tokens"]) for row in rows)
    tokens, mask = np.zeros((len(rows), longest), np.int32), np.zeros((len(rows), longest), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row["tokens"])] = row["tokens"]
        mask[i, : len(row["tokens"])] = True
    position_BT, segment_BT = transformer.segments(jnp.asarray(mask))
    x_BTD, *_ = transformer.hidden(
        spec, params, jnp.asarray(tokens), position_BT, transformer.within_segments(segment_BT)
    )
    logits = np.asarray(transformer.logits(spec, params, x_BTD))
    logps = np.asarray(jax.nn.log_softmax(logits, axis=-1))
    for i, row in enumerate(rows):
        n = len(row["tokens"])
        ours = logps[i, np.arange(n - 1), row["tokens"][1:]]
        assert np.abs(ours - row["logps"]).max() <= 1e-4, row["text"]
        assert logits[i, :n].argmax(-1).tolist() == row["greedy"], row["text"]
