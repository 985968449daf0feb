"""Who grades which samples of a benchmark."""

import dataclasses
from types import SimpleNamespace

from p2o_jax.evaluation.benchmark import BenchmarkSampler, Judges
from p2o_jax.rewards.lenient import Grade
from tests.factories import make_question, make_rollout


def test_a_library_s_verdict_is_also_the_lenient_one():
    asked = []

    def grade(responses, answers):
        asked.extend(zip(responses, answers, strict=True))
        return [Grade("compared", "correct") for _ in responses]

    compared, scored = make_question("a", answer="1"), make_question("b", answer="2")
    scored = dataclasses.replace(scored, scorer="reasoning_gym")
    rollouts = [
        make_rollout(scored, text=r"\boxed{\text{7}}", score=0.0),
        make_rollout(compared, text="one", score=0.0),
        make_rollout(scored, text="none", score=0.0),
    ]
    sampler = BenchmarkSampler.__new__(BenchmarkSampler)
    sampler.judges = Judges(SimpleNamespace(), SimpleNamespace(grade=grade))
    assert sampler._lenient(rollouts) == [("7", "wrong"), ("compared", "correct"), ("", "wrong")]
    assert asked == [("one", "1")]
