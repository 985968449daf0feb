"""All tasks of the real reasoning-gym library, where it is installed."""

import pytest

from p2o_jax import config
from p2o_jax.data import sources
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.rewards.tagged_json import decode

CFG = config.DataConfig(prompt_template="{question}")


@pytest.mark.slow
def test_every_task_is_scored_as_by_the_library():
    """Right answers and odd ones, for all tasks but one that takes seconds per question."""
    library = pytest.importorskip("reasoning_gym", reason="pip install 'p2o-jax[reasoning-gym]'")
    tasks = sorted({*library.factory.DATASETS} - {"composite", "knight_swap"})
    loaded = sources.load(f"reasoning_gym:{','.join(tasks)}?size={len(tasks)}&seed=11", CFG)
    odd = ("nonsense", "0", "[1, 2]", "x**2 + C", "(3+4)*2", "True", '["a"]', "{}")
    asked, expected = [], []
    for question in loaded.questions:
        values = question.meta["reasoning_gym"]
        entry = decode(values["entry"])
        dataset = library.create_dataset(values["task"], **values["settings"])
        examples = (entry["answer"], entry["metadata"].get("example_answer"), *odd)
        for answer in (a.strip() for a in examples if isinstance(a, str)):
            asked.append((f"<answer>{answer}</answer>", question))
            try:
                expected.append(dataset.score_answer(answer, decode(values["entry"])))
            except Exception:
                expected.append(0)
    with Scorer(config.RewardConfig(timeout_s=60.0)) as scorer:
        verdicts = scorer.judge(*zip(*asked, strict=True))
    assert [v.answer_score for v in verdicts] == expected
    assert not any(v.status == "time_out" for v in verdicts) and len(tasks) > 100
