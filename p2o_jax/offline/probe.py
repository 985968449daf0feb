"""Would P²O help a model on a data set? Samples plainly and under given templates."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from p2o_jax import config
from p2o_jax.config import Config, ConfigError
from p2o_jax.data import seed_templates, sources
from p2o_jax.evaluation import probe as figures
from p2o_jax.evaluation.probe import PromptFigures, RightResponse
from p2o_jax.models import sharding, transformer
from p2o_jax.offline import sampler_shapes, settings
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.rollout import sampling_params
from p2o_jax.rollout.pipeline import RolloutPipeline
from p2o_jax.runtime import distributed, files, rng
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import components, limits
from p2o_jax.startup.model import Model, open_model
from p2o_jax.types import Question, Rollout, TemplatedQuestion

FIGURES, TABLE, RESPONSES = "probe.json", "probe.md", "responses.jsonl"
MAX_SCORED = 64  # right responses under a template that are scored without it
ROWS = 8  # scored at a time, per shard of the mesh's data x fsdp
LENGTH_STEP = 64  # scored rows are padded to a multiple


class ProbeOptions(NamedTuple):
    """What is probed, and where the figures are written."""

    model: str
    data: str
    templates: str = ""  # file of templates; empty: only the plain prompt
    questions: int = 48
    n: int = 8  # responses per question at the training temperature
    out: Path | None = None
    overrides: settings.Overrides = ()


def probe(options: ProbeOptions) -> None:
    """Samples, and prints a table, a verdict and a recommendation.

    Raises:
        ConfigError: anything wrong with options, data, templates, config or model.
    """
    out = options.out
    paths = [out / name for name in (FIGURES, TABLE, RESPONSES)] if out else []
    if problems := files.conflicts("--out", *paths):
        raise ConfigError(*problems)
    exported = settings.exported_settings(options.model, settings.ALL_SETTINGS)
    cfg = settings.command_config(
        Config(), {"model.path": options.model, "data.path": options.data} | exported,
        options.overrides,
    )  # fmt: skip
    templates = ["", *(seed.text for seed in seed_templates.read(options.templates))]
    loaded = sources.load(options.data, cfg.data)
    reporter = Reporter(enabled=distributed.is_main_process())
    for notice in loaded.notices:
        reporter.line(notice)
    questions = drawn(loaded.questions, options.questions, cfg.train.seed)
    model = open_model(cfg, reporter)
    cfg = _fit(cfg, options, model, questions, templates)
    with ExitStack() as stack:
        scorer = stack.enter_context(Scorer(cfg.reward))
        if problems := distributed.broadcast_from_main(scorer.problems):
            raise ConfigError(*problems)
        measured, rollouts = _measure(cfg, options.n, model, questions, templates, scorer, reporter)
    if distributed.is_main_process():
        _report(cfg, options, measured, rollouts, len(loaded.questions))


def drawn(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """`count` of the questions in their order, or all, drawn by the seed."""
    if count >= len(questions):
        return list(questions)
    chosen = np.random.default_rng(seed).choice(len(questions), count, replace=False)
    return [questions[i] for i in sorted(chosen)]


def _fit(
    cfg: Config,
    options: ProbeOptions,
    model: Model,
    questions: Sequence[Question],
    templates: Sequence[str],
) -> Config:
    """The config with the sampler's shapes fitted to the prompts.

    Args:
        cfg: to be fitted.
        options: with what the user gave.
        model: renders the prompts.
        questions: all that are asked.
        templates: under which they are asked.

    Raises:
        ConfigError: prompts or responses do not fit the sampler or the model's context.
    """
    lengths = [len(model.chat.render(q, z)) for q in questions for z in templates]
    given = {key for key, _ in options.overrides}
    cfg = sampler_shapes.fit(cfg, given, model, lengths, options.n)
    limit, longest = config.max_prompt_tokens(cfg), max(lengths)
    problems = (
        [f"a prompt of {longest} tokens; config.rollout.prompt_buckets end at {limit}"]
        if longest > limit
        else []
    )
    prompt = f"the longest prompt of {longest:,} tokens"
    sources.raise_problems(problems + limits.response_problems(cfg, model.spec, prompt, longest))
    return cfg


def _measure(
    cfg: Config,
    n: int,
    model: Model,
    questions: Sequence[Question],
    templates: Sequence[str],
    scorer: Scorer,
    reporter: Reporter,
) -> tuple[list[PromptFigures], list[Rollout]]:
    """(figures of each template, the plain prompt's first; all rollouts).

    Args:
        cfg: fitted to the prompts.
        n: responses per question at the training temperature.
        model: opened, not loaded.
        questions: asked plainly and under every template.
        templates: the empty one first.
        scorer: judges responses.
        reporter: shows progress.
    """
    engine = components.make_engine(cfg, model)
    params = model.load(str(jnp.dtype(model.dtype)))
    weights = engine.to_rollout_layout(params)
    pipeline = RolloutPipeline(engine, model.chat, scorer.judge, reporter)
    key = rng.key(cfg.train.seed, "probe")

    def sample(number: int, z: str, count: int, temperature: float) -> list[Rollout]:
        prompts = [
            TemplatedQuestion(q, z, f"{number}/{temperature}/{q.id}/{i}")
            for q in questions
            for i in range(count)
        ]
        params = sampling_params.at(cfg, temperature)
        return pipeline.sample(weights, prompts, params, key, f"prompt {number + 1}")

    rollouts = []
    for number, z in enumerate(templates):
        greedy = sample(number, z, 1, 0.0)
        sampled = sample(number, z, n, cfg.rollout.temperature)
        rollouts.append((greedy, sampled))
    unsolved = figures.without_success(rollouts[0][1], n)
    longest = max(len(model.chat.render(q)) for q in questions) + cfg.rollout.max_new_tokens
    plain_logps = PlainLogps(cfg, model, params, longest)
    measured = []
    for z, (greedy, sampled) in zip(templates, rollouts, strict=True):
        right = [r for r in sampled if r.succeeded and r.templated][:MAX_SCORED]
        scored = [
            RightResponse(r.completion.token_ids, logp_R, r.completion.logp_R)
            for r, logp_R in zip(right, plain_logps(right), strict=True)
        ]
        measured.append(
            figures.measure(
                z, greedy, sampled, n, unsolved, scored, cfg.distill, model.chat.tokenizer.spell
            )
        )
    return measured, [r for greedy, sampled in rollouts for r in (*greedy, *sampled)]


class PlainLogps:
    """Log-probs of responses after the plain prompt, as the learner computes them."""

    def __init__(self, cfg: Config, model: Model, params: Any, longest: int):
        """One compiled program for all responses.

        Args:
            cfg: with the temperature, and the size of a chunk of logits.
            model: of the params.
            params: in the learner's layout.
            longest: tokens of the longest prompt and response together.
        """
        self.params = params
        self.tokens = -(-longest // LENGTH_STEP) * LENGTH_STEP
        self.rows = ROWS * sharding.num_shards(model.mesh)
        self.split = sharding.batch_sharding(model.mesh)

        def logps(params: Any, token_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
            position_BT, segment_BT = transformer.segments(mask_BT)
            return transformer.token_logps(
                model.spec,
                params,
                token_BT,
                position_BT,
                segment_BT,
                temperature=cfg.rollout.temperature,
                dtype=model.dtype,
                chunk=cfg.model.logit_chunk,
                mesh=model.mesh,
            )[0]

        self.program = jax.jit(logps, out_shardings=self.split)

    def __call__(self, rollouts: Sequence[Rollout]) -> list[np.ndarray]:
        """Log-probs [R] of each response, float32."""
        out = []
        for first in range(0, len(rollouts), self.rows):
            part = rollouts[first : first + self.rows]
            token_BT = np.zeros((self.rows, self.tokens), np.int32)
            mask_BT = np.zeros_like(token_BT, bool)
            for row, r in enumerate(part):
                ids = (*r.plain_ids, *r.completion.token_ids.tolist())
                token_BT[row, : len(ids)], mask_BT[row, : len(ids)] = ids, True
            on_device = (distributed.put(x, self.split) for x in (token_BT, mask_BT))
            logp_BT = distributed.to_host(self.program(self.params, *on_device))
            for row, r in enumerate(part):
                start = len(r.plain_ids)
                out.append(logp_BT[row, start : start + len(r.completion.token_ids)])
        return out


def _report(
    cfg: Config,
    options: ProbeOptions,
    measured: Sequence[PromptFigures],
    rollouts: Sequence[Rollout],
    available: int,
) -> None:
    """Prints the table, and writes the files of --out.

    Args:
        cfg: as fitted.
        options: of the probe.
        measured: figures of each prompt.
        rollouts: all of them.
        available: questions of the data.
    """
    text = figures.table(measured, cfg, available)
    print(text)
    if not options.out:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    values: Mapping[str, Any] = {
        "prompts": [dataclasses.asdict(m) for m in measured],
        "verdict": figures.verdict(measured),
        "distill": figures.recommendation(measured, cfg.distill),
        "config": dataclasses.asdict(cfg),
    }
    files.write_json(options.out / FIGURES, values)
    files.write_whole(options.out / TABLE, text)
    rows = [
        {
            "question": r.prompt.question.text,
            "answer": r.prompt.question.answer,
            "template": r.prompt.template,
            "response": r.text,
            "stopped": r.completion.stopped,
            "verdict": dataclasses.asdict(r.verdict),
        }
        for r in rollouts
    ]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    files.write_whole(options.out / RESPONSES, "".join(lines))
    print(options.out / TABLE)
