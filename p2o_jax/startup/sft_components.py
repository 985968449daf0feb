"""The parts of supervised training, and its preflight."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from p2o_jax.config import Config, ConfigError, rules
from p2o_jax.data import sft_rows, sources
from p2o_jax.models import flops
from p2o_jax.models.device_memory import bytes_per_device
from p2o_jax.models.spec import num_params
from p2o_jax.rl.sft_learner import SftExample, SftLearner
from p2o_jax.runtime import distributed
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import limits, preflight, run_directory
from p2o_jax.startup.loop_components import LoopComponents, Opened
from p2o_jax.startup.model import WORLD, Model, collect
from p2o_jax.startup.run_directory import RunDirectory
from p2o_jax.state import SftState
from p2o_jax.tracking import writers
from p2o_jax.tracking.sft_recorder import SftRecorder
from p2o_jax.types import Question


class SftComponents(LoopComponents[SftState]):
    """The parts of a supervised run: a learner, checkpoints and records; no sampler, verifier or
    GEPA.
    """

    LOOP = run_directory.SFT

    def _preflight(self) -> Opened:
        return open_sft(self.cfg, self.directory, self.reporter)

    @property
    def per_step(self) -> int:
        """Rows of a step."""
        return self.cfg.sft.examples

    @property
    def num_steps(self) -> int:
        """Steps of the whole run, each an optimizer update."""
        return self.cfg.train.epochs * self.questions.steps_per_epoch

    @property
    def from_json(self) -> Callable[[Any, Mapping[str, Any]], SftState]:
        """Makes a state of the learner's arrays and a checkpoint's JSON."""
        return SftState.from_json

    def initial_state(self, learner: Any) -> SftState:
        """The state before the first step."""
        return SftState(learner)

    @cached_property
    def learner(self) -> SftLearner:
        """Updates, and scores held-out rows."""
        return self.make_learner(SftLearner, self.num_steps)

    @cached_property
    def record(self) -> SftRecorder:
        """The records of the run."""
        return SftRecorder(self.cfg, self.workdir, self.reporter, self.compiles, self.writers)

    def examples(self, rows: Sequence[Question]) -> list[SftExample]:
        """The rows as tokens."""
        chat = self.chat
        return [
            SftExample(chat.render(row), np.array(sft_rows.response_ids(chat, row), np.int32))
            for row in rows
        ]

    def costs(self, examples: Sequence[SftExample]) -> dict[str, dict[str, float]]:
        """What an update on these examples has cost, for the ledger."""
        lengths = [len(e.prompt_ids) + len(e.response_ids) for e in examples]
        seconds = self.reporter.seconds.get("update", 0.0)
        spent = {"sequences": len(lengths), "tokens": sum(lengths), "seconds": seconds}
        return {"update": {**spent, "flops": flops.update(self.model.spec, lengths)}}

    def is_evaluation_due(self, step: int) -> bool:
        """Before the first step, and every `eval.every_steps`."""
        every = self.cfg.eval.every_steps
        return step % every == 0 if every else step == 0

    def evaluate(self, state: SftState) -> tuple[dict[str, float], dict[str, float]]:
        """eval/* metrics of the held-out sets, the first of which is `eval/nll`, and the cost."""
        start, values, lengths = time.monotonic(), dict[str, float](), list[int]()
        params = self.learner.policy(state.learner)
        with self.reporter.phase("eval"):
            for part in self.heldout_sets:
                rows = part.questions[: self.cfg.eval.max_questions or None]
                examples = self.examples(rows)
                nll = self.learner.nll(params, examples)
                values.setdefault("eval/nll", nll)
                if len(self.heldout_sets) > 1:
                    values[f"eval/{part.name}/nll"] = nll
                lengths += [len(e.prompt_ids) + len(e.response_ids) for e in examples]
        spent = {"tokens": sum(lengths), "flops": flops.scoring(self.model.spec, lengths)}
        return values, {**spent, "seconds": time.monotonic() - start}

    def describe(self) -> str:
        """Model, mesh, rows and bytes in a line."""
        spec, mesh = self.model.spec, self.model.mesh
        shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        state = bytes_per_device(self.learner.abstract_state()) / 2**30
        heldout = sum(len(part.questions) for part in self.heldout_sets)
        return (
            f"{self.model.directory}: {spec.family}, {num_params(spec):,} parameters;"
            f" {mesh.devices.flat[0].device_kind} mesh {shape}, processes: {jax.process_count()};"
            f" {len(self.questions)} rows, {heldout} held out; {state:.2f} GiB of params and"
            " optimizer state per chip"
        )


def open_sft(cfg: Config, directory: RunDirectory, reporter: Reporter) -> Opened:
    """The model, the training rows and the held-out sets; nothing is written before all of it is
    known to be good.

    Raises:
        ConfigError: with a line for everything wrong with config, workdir, mesh, model directory
            and data files.
    """
    problems = [
        *rules.problems(cfg, len(jax.devices())),
        *directory.problems,
        *directory.changed_settings(cfg),
    ]
    train = collect(problems, lambda: _load(cfg))
    field, paths = cfg.sft.messages_field, cfg.data.eval_path
    heldout = collect(problems, lambda: sft_rows.load_sets(paths, cfg.data, field)) or []
    problems += preflight.changed_data(cfg, directory, train, heldout)
    problems += distributed.broadcast_from_main(lambda: writers.problems(cfg))
    if problems and cfg.model.path == WORLD:  # which would be pretrained first
        raise ConfigError(*problems)
    model = preflight.checked_model(problems, cfg, reporter, directory)
    parts = [part for part in (train, *heldout) if part]
    if model:
        problems += _length_problems(cfg, model, parts)
    num_steps = cfg.train.epochs * math.ceil(
        len(train.questions if train else ()) / cfg.sft.examples
    )
    if model and train:
        problems += distributed.broadcast_from_main(
            lambda: preflight.space_problems(cfg, directory, model, num_steps)
        )
    opened, rows = preflight.require(problems, model, train)
    for line in rules.notices(cfg):
        reporter.line(line)
    return opened, rows, heldout


def _load(cfg: Config) -> sources.Loaded:
    if cfg.data.path in ("", WORLD):
        raise ConfigError(
            f"config.data.path={cfg.data.path!r}: name a file or folder of rows with responses,"
            " hf:NAME or tfds:NAME@SPLIT"
        )
    return sft_rows.load(cfg.data.path, cfg.data, cfg.sft.messages_field)


def _length_problems(cfg: Config, model: Model, parts: Sequence[sources.Loaded]) -> list[str]:
    """A line for every prompt and response that is too long, and one if the longest row is longer
    than the model's context.
    """
    problems, longest = [], 0
    for part in parts:
        problems += sources.too_long(
            part, lambda row: len(model.chat.render(row)), cfg.data.max_prompt_tokens
        )
        problems += sft_rows.too_long(part, model.chat, cfg.rollout.max_new_tokens)
        for row in part.questions:
            response = sft_rows.response_ids(model.chat, row)
            longest = max(longest, len(model.chat.render(row)) + len(response))
    if why := limits.beyond_context(cfg, model.spec, longest):
        problems.append(f"config.data.path: the longest row has {longest:,} tokens: {why}")
    return problems
