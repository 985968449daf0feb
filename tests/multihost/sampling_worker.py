"""One process of test_sampling: samples and judges on a mesh of all processes' devices, and
writes what it got.
"""

import json
import os
import sys
from pathlib import Path


def main(coordinator: str, num_processes: int, index: int, devices_each: int, out: str) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["NPROC"] = "32"
    import jax

    jax.config.update("jax_num_cpu_devices", devices_each)
    if num_processes > 1:
        jax.distributed.initialize(coordinator, num_processes, index)
    import jax.numpy as jnp
    import numpy as np

    from p2o_jax.config import RolloutConfig
    from p2o_jax.models import sharding, transformer
    from p2o_jax.models.spec import ModelSpec
    from p2o_jax.rollout.engine import Engine
    from p2o_jax.rollout.pipeline import RolloutPipeline
    from p2o_jax.runtime import rng
    from p2o_jax.runtime.console import Reporter
    from p2o_jax.types import Question, SamplingParams, TemplatedQuestion, Verdict

    spec = ModelSpec(
        "qwen3",
        vocab=50,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp=48,
        qk_norm=True,
        tied=True,
    )
    mesh = sharding.make_mesh((1, num_processes * devices_each, 1))
    cfg = RolloutConfig(
        questions=10,
        group_size=4,
        prompt_buckets=(32,),
        slots=8,
        prompt_cache_tokens=2048,
        prefill_tokens=64,
    )
    engine = Engine(spec, mesh, cfg, [24], (7, 31), 0, jnp.float32)
    shardings = sharding.param_shardings(spec, mesh, sharding.LEARNER)
    params = jax.jit(lambda: transformer.init(spec, jax.random.key(0)), out_shardings=shardings)()

    class Chat:
        def render(self, question, template=""):
            return tuple(ord(c) % 50 for c in template + question.text)

        def decode(self, ids):
            return " ".join(map(str, ids))

    judged_by = []

    def verify(texts, questions):
        judged_by.append(jax.process_index())
        return [Verdict(float(len(t) % 2), 1.0, "correct") for t in texts]

    questions = [
        Question(f"q{i}", ({"role": "user", "content": "which number is it, " + "?" * i},), "")
        for i in range(10)
    ]
    asks = [
        TemplatedQuestion(q, "", f"{q.id}/{g}", 3.0 * len(q.id + q.text))
        for q in questions
        for g in range(4)
    ]
    pipeline = RolloutPipeline(engine, Chat(), verify, Reporter(enabled=False))
    rollouts = pipeline.sample(
        engine.to_rollout_layout(params), asks, SamplingParams(1.0, 24), rng.key(0, "test")
    )
    result = {
        "texts": [r.text for r in rollouts],
        "logps": [np.round(r.completion.logp_R, 4).tolist() for r in rollouts],
        "scores": [r.verdict.answer_score for r in rollouts],
        "judged_here": len(judged_by),
    }
    Path(out).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
