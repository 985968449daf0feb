"""GEPA alone: `python -m benchmarks.gepa [--config configs/world_p2o.py] [--seeds 3]`.

On the toy world, with its pretrained base model, both presets search on the questions that are hard
in one pass of plain rollouts. The budgets are equal: `recommended` may generate as many rollouts as
`faithful` did with the same seed. Rounds are consecutive iterations. Within a round, all rollouts
of a stage are sampled together.

Also measures the fraction of the sampler's rows in use during a phase with the paper's settings (k
= 16, m = 3, V = 300, heavy_4). This uses a tiny model with random weights, whose responses differ
widely in length, and random scores.
"""

import dataclasses
import random
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import report
from benchmarks.report import Target
from p2o_jax import config, gepa
from p2o_jax.config import Config, loading
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command
from p2o_jax.rollout import sampling_params
from p2o_jax.runtime import rng
from p2o_jax.startup.model import open_model
from p2o_jax.startup.questions import load_questions
from p2o_jax.state import Ledger
from p2o_jax.types import Outcome, Question, SearchResult

TARGETS = {
    "at most half the rounds": Target("rounds_ratio", "<=", 0.5),
    "at least as many dev questions solved": Target("solved_difference", ">=", 0),
    "at most three evaluations and one reflection per iteration": Target(
        "max_calls_per_iteration", "<=", 4
    ),
    "rows in use at the paper's settings": Target("frac_rows_busy_paper", ">=", 0.8),
}
PRESETS = ("faithful", "recommended")
ACCEPTANCE = 0.15  # fraction of proposals that beat their parent, in the run with random scores
COMMAND_LINE = CommandLine(
    "benchmarks.gepa",
    __doc__,
    Flag("config", "Config file", "configs/world_p2o.py", metavar="FILE.py"),
    Flag("seeds", "Seeds", 3, kind=int, within=COUNT),
    Flag("paper", "Also measure the paper's settings", True, kind=bool),
)


def run(argv: Sequence[str]) -> None:
    """Runs and reports.

    Raises:
        ConfigError: the flags, config or model are invalid.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    values = loading.load_config_dict(flags["config"], overrides)
    figures = world_figures(loading.from_config_dict(values), flags["seeds"])
    if flags["paper"]:
        figures |= paper_figures()
    report.finish("gepa", figures, TARGETS)


def world_figures(cfg: Config, num_seeds: int) -> dict[str, Any]:
    """Rounds, calls, rollouts and solved dev questions of both presets, by seed."""
    world = World(config.resolve(cfg))
    rows = []
    for seed in range(num_seeds):
        budget, row = 0, {}
        for preset in PRESETS:
            own = config.resolve(dataclasses.replace(cfg, preset=preset))
            g = (
                dataclasses.replace(own.gepa, budget="calls", max_metric_calls=budget)
                if budget
                else own.gepa
            )
            row[preset], budget = world.search(dataclasses.replace(own, gepa=g), seed)
        rows.append(row)

    def total(preset: str, name: str) -> float:
        return sum(row[preset][name] for row in rows)

    return {
        "hard_questions": len(world.hard),
        "rounds_ratio": round(
            total("recommended", "iterations") / max(total("faithful", "iterations"), 1), 3
        ),
        "solved_difference": total("recommended", "solved") - total("faithful", "solved"),
        "max_calls_per_iteration": max(
            row[p]["calls_per_iteration"] for row in rows for p in PRESETS
        ),
        "by_seed": rows,
    }


class World:
    """The base model, and the questions that are hard for it."""

    def __init__(self, cfg: Config):
        import numpy as np

        from p2o_jax.p2o import mining
        from p2o_jax.p2o.assign import prompts_for
        from p2o_jax.rewards.scorer import Scorer
        from p2o_jax.rollout.pipeline import RolloutPipeline
        from p2o_jax.runtime.console import Reporter
        from p2o_jax.startup import components
        from p2o_jax.state import Assignment

        reporter = Reporter()
        self.model = open_model(cfg, reporter)
        self.engine = components.make_engine(cfg, self.model)
        self.pipeline = RolloutPipeline(
            self.engine, self.model.chat, Scorer(cfg.reward).judge, reporter
        )
        self.weights = self.engine.to_rollout_layout(self.model.load(cfg.model.param_dtype))
        loaded = load_questions(cfg)
        r = cfg.rollout
        asks = prompts_for(loaded.questions, Assignment(), r.group_size, "bench")
        sampling = sampling_params.training(cfg)
        rollouts = self.pipeline.sample(self.weights, asks, sampling, rng.key(0, "bench"))
        solved_QG = np.array([x.succeeded for x in rollouts]).reshape(-1, r.group_size)
        names = set(
            mining.find_hard(loaded.questions, solved_QG, np.zeros_like(solved_QG), cfg.mining)
        )
        self.hard = [q for q in loaded.questions if q.id in names]

    def search(self, cfg: Config, seed: int) -> tuple[dict[str, float], int]:
        """The figures of one phase, and the number of rollouts that it generated."""
        from p2o_jax.rollout.gepa_adapter import GepaAdapter

        key, sampling = rng.key(seed, "bench/gepa"), sampling_params.reflection(cfg)

        def reply(prompts: Sequence[str], names: Sequence[str], spent: Any) -> Any:
            return self.pipeline.reply(self.weights, prompts, names, sampling, key)

        stages = GepaAdapter(self.pipeline, lambda: self.weights, reply, cfg, key, Ledger())
        self.engine.take_work()
        start = time.monotonic()
        result = gepa.search(
            self.hard,
            stages.evaluate,
            stages.reflect,
            self.model.chat.count_tokens,
            cfg.gepa,
            f"{seed}/bench",
            fits=stages.fits,
            spells_special=self.model.chat.spells_special,
            on_stage=stages.enter,
        )
        work = self.engine.take_work()
        figures = search_figures(result) | {
            "generated_tokens": stages.ledger.total("generated_tokens"),
            "frac_rows_busy": round(work.busy / max(work.computed, 1), 3),
            "seconds": round(time.monotonic() - start, 2),
        }
        return figures, int(result.stats["rollouts_generated"])


def search_figures(result: SearchResult) -> dict[str, float]:
    """Rounds, calls and solved dev questions of a phase.

    The first call, the empty template on dev, does not belong to an iteration.
    """
    stats = result.stats
    calls = stats["evaluate_calls"] - 1 + stats["reflect_calls"]
    return {
        "iterations": stats["iterations"],
        "calls_per_iteration": round(calls / max(stats["iterations"], 1), 2),
        "rollouts": stats["rollouts_generated"],
        "accepted": stats["accepted"],
        "solved": round(stats["frac_dev_covered"] * stats["dev_questions"]),
    }


def paper_figures(
    slots: int = 128, max_new_tokens: int = 256, num_questions: int = 600, budget: str = "heavy_4"
) -> dict[str, Any]:
    """The fraction of rows in use over all sampling of a phase with the paper's k, m, V and budget.

    Reflection is not included.
    """
    import jax.numpy as jnp

    from p2o_jax.models import sharding, transformer
    from p2o_jax.models.spec import ModelSpec
    from p2o_jax.rollout.engine import Engine
    from p2o_jax.runtime import distributed
    from p2o_jax.types import Request, SamplingParams

    spec = ModelSpec(
        "qwen3",
        vocab=64,
        width=16,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=8,
        mlp=16,
        qk_norm=True,
        tied=True,
    )
    mesh = sharding.make_mesh((1, 1, 1), devices=distributed.jax.devices()[:1])
    rollout = config.RolloutConfig(
        prompt_buckets=(32,),
        slots=slots,
        prompt_cache_tokens=32 * 512,
        prefill_tokens=32 * 128,
        max_new_tokens=max_new_tokens,
    )
    engine = Engine(spec, mesh, rollout, [max_new_tokens], (7,), 0, jnp.float32)
    weights = engine.to_rollout_layout(transformer.init(spec, rng.key(0, "bench")))
    sampling, key, calls, lengths = (
        SamplingParams(1.0, max_new_tokens),
        rng.key(0, "bench"),
        [0],
        [],
    )
    lots = random.Random(0)

    def evaluate(pairs: Sequence[tuple[str, Question]]) -> list[Outcome]:
        calls[0] += 1
        requests = [
            Request(tuple(hash_words(f"{z}/{q.id}")), f"{calls[0]}/{i}")
            for i, (z, q) in enumerate(pairs)
        ]
        completions = engine.generate(weights, requests, sampling, key)
        lengths.extend(len(c.token_ids) for c in completions)
        # one success in three, for parents without a success
        chance = 1 - (1 - ACCEPTANCE) ** (1 / 3)
        return [Outcome(float(lots.random() < chance), 1.0, "") for _ in pairs]

    cfg = dataclasses.replace(
        config.resolve(Config()).gepa, budget=budget, patience=0, reflect_prompt_tokens=10**6
    )
    pool = [
        Question(f"q{i:04}", ({"role": "user", "content": f"{i}"},), "no such answer")
        for i in range(num_questions)
    ]
    start = time.monotonic()
    result = gepa.search(
        pool,
        evaluate,
        lambda prompts: [f"``` {lots.random()} ```" for _ in prompts],
        lambda text: len(text.split()),
        cfg,
        "bench",
    )
    work = engine.take_work()
    return {
        "frac_rows_busy_paper": round(work.busy / max(work.computed, 1), 3),
        "paper": {
            **search_figures(result),
            "dev_questions": result.stats["dev_questions"],
            "slots": slots,
            "mean_tokens": round(sum(lengths) / len(lengths), 1),
            "max_tokens": max(lengths),
            "seconds": round(time.monotonic() - start, 1),
        },
    }


def hash_words(text: str, count: int = 8) -> list[int]:
    """A prompt of random tokens, seeded by the text."""
    rng = random.Random(text)
    return [rng.randrange(8, 64) for _ in range(count)]


if __name__ == "__main__":
    command(run)
