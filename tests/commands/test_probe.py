"""The probe as a user runs it, on a golden checkpoint of random weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from p2o_jax import probe
from p2o_jax.config import ConfigError
from p2o_jax.offline import probe as offline

MODEL = Path(__file__).parents[1] / "golden/hf/qwen3_tied"
REWARD = """
def reward(messages, response, answer, meta):
    return 1.0
"""


def test_probe(tmp_path, monkeypatch, capsys):
    """Every response is scored a second time, without its template, which changes its log-probs;
    those of plain responses are the sampler's.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fn.py").write_text(REWARD)
    rows = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(5)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "t.txt").write_text("Think first.\n\nAnswer with a number.\n")
    sampled, sample = [], offline.RolloutPipeline.sample

    def recorded(*args):
        sampled.extend(rollouts := sample(*args))
        return rollouts

    class Checked(offline.PlainLogps):
        def __call__(self, rollouts):
            plain = [r for r in sampled if not r.templated][-8:]
            for r, logp_R in zip(plain, super().__call__(plain), strict=True):
                np.testing.assert_allclose(logp_R, r.completion.logp_R, atol=1e-4)
            return super().__call__(rollouts)

    monkeypatch.setattr(offline.RolloutPipeline, "sample", recorded)
    monkeypatch.setattr(offline, "PlainLogps", Checked)
    probe.run(
        [
            f"--model={MODEL}",
            "--data=q.jsonl",
            "--templates=t.txt",
            "--questions=4",
            "--n=4",
            "--out=out",
            "--config.reward.fn=fn.py:reward",
            "--config.rollout.max_new_tokens=8",
            "--config.rollout.temperature=1.0",
            "--config.data.prompt_template={question}",
        ]
    )
    values = json.loads((tmp_path / "out/probe.json").read_text())
    assert [p["template"] for p in values["prompts"]] == [
        "",
        "Think first.",
        "Answer with a number.",
    ]
    assert all(p["questions"] == 4 and p["per_question"] == 4 for p in values["prompts"])
    assert [p["scored"] for p in values["prompts"]] == [0, 16, 16]  # not the greedy ones
    responses = (tmp_path / "out/responses.jsonl").read_text().splitlines()
    assert len(responses) == 3 * (4 + 16) == len(sampled)
    printed = capsys.readouterr().out
    assert "4 of 5 questions, greedily and 4 times at temperature 1" in printed
    assert values["verdict"] in printed and values["distill"] in printed
    with pytest.raises(ConfigError, match="exists"):
        probe.run([f"--model={MODEL}", "--data=q.jsonl", "--out=out"])


def test_all_that_is_wrong_with_files(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        probe.run([f"--model={MODEL}", "--data=none.jsonl", "--templates=none.txt"])
