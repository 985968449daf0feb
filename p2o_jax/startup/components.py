"""From a Config to the parts that the P²O loop uses: the only place that picks an implementation by
name.

All that can be known to be wrong is collected and raised together, before anything compiles.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax

from p2o_jax import config
from p2o_jax.config import Config
from p2o_jax.evaluation.heldout import Evaluation
from p2o_jax.gepa import api
from p2o_jax.models.spec import num_params
from p2o_jax.rewards import references
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.rl import advantages, cost
from p2o_jax.rl.batch import Example
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout import dynamic_sampling, memory, reflectors, sampling_params
from p2o_jax.rollout.engine import Engine, Program
from p2o_jax.rollout.gepa_adapter import GepaAdapter, PhaseJournals, settings_digest
from p2o_jax.rollout.pipeline import RolloutPipeline
from p2o_jax.runtime import distributed
from p2o_jax.startup import memory_report
from p2o_jax.startup.loop_components import LoopComponents, Opened
from p2o_jax.startup.memory_report import held_bytes, reference_bytes
from p2o_jax.startup.model import WORLD, Model, reference_dtype
from p2o_jax.startup.preflight import load_seeds, open_run
from p2o_jax.state import RunState
from p2o_jax.tracking.recorder import Recorder
from p2o_jax.types import Rollout, SamplingParams


class Components(LoopComponents[RunState]):
    """The parts of a P²O run."""

    PARTS = ("record", "engine", "scorer", "checkpoints")

    def _preflight(self) -> Opened:
        return open_run(self.cfg, self.directory, self.reporter)

    @property
    def per_step(self) -> int:
        """Questions of a step."""
        return self.cfg.rollout.questions

    @property
    def from_json(self) -> Callable[[Any, Mapping[str, Any]], RunState]:
        """Makes a state of the learner's arrays and a checkpoint's JSON."""
        return RunState.from_json

    def initial_state(self, learner: Any) -> RunState:
        """With `gepa.schedule=first` a prompt phase on all questions comes before the first
        step.
        """
        if not (self.cfg.gepa.enabled and self.cfg.gepa.schedule == "first"):
            return RunState(learner)
        return RunState(
            learner, phase="prompts", hard_ids=tuple(q.id for q in self.questions.questions)
        )

    def _make_parts(self) -> None:
        _ = self.engine, self.scorer
        self._check_answers()

    @cached_property
    def learner(self) -> Learner:
        """Scores and updates."""
        updates_per_step = self.per_step // config.minibatch_questions(self.cfg)
        num_updates = self.cfg.train.epochs * self.questions.steps_per_epoch * updates_per_step
        return self.make_learner(Learner, num_updates)

    @cached_property
    def engine(self) -> Engine:
        """Samples."""
        held = held_bytes(self.cfg, self.model.spec, self.model.mesh, self.learner)
        return make_engine(self.cfg, self.model, held)

    @cached_property
    def scorer(self) -> Scorer:
        """Judges responses, in processes of its own."""
        return Scorer(self.cfg.reward)

    @cached_property
    def pipeline(self) -> RolloutPipeline:
        """From questions to judged rollouts."""
        return RolloutPipeline(self.engine, self.chat, self.scorer.judge, self.reporter)

    @cached_property
    def sampling(self) -> SamplingParams:
        """How training samples."""
        return sampling_params.training(self.cfg)

    @cached_property
    def fill(self) -> Callable[..., dynamic_sampling.Filled]:
        """Chooses the rollouts to train on; with dynamic sampling it asks further questions."""
        if not self.cfg.rollout.dynamic_sampling:
            return dynamic_sampling.as_asked
        return self._dynamic_sampling()

    @cached_property
    def evaluation(self) -> Evaluation:
        """Evaluation on the held-out questions."""
        params = sampling_params.evaluation(self.cfg)
        return Evaluation(self.heldout_sets, self.pipeline, self.cfg.eval, params, self.key("eval"))

    @cached_property
    def seed_templates(self) -> tuple[str, ...]:
        """The templates of `gepa.seed_templates`."""
        return tuple(seed.text for seed in load_seeds(self.cfg))

    @cached_property
    def journals(self) -> PhaseJournals:
        """What prompt phases have asked so far."""
        in_phases = settings_digest({**self.settings, "model": self.model.digests})
        return PhaseJournals(self.workdir, self.cfg.train.seed, in_phases, self.reporter.line)

    @cached_property
    def record(self) -> Recorder:
        """The records of the run."""
        return Recorder(
            self.cfg,
            self.workdir,
            self.questions,
            self.engine,
            self.reporter,
            self.compiles,
            self.writers,
        )

    def _check_answers(self) -> None:
        """Reports reference answers that responses will hardly match."""
        parts = [part for part in (self.train_set, *self.heldout_sets) if part.path != WORLD]
        questions = [question for part in parts for question in part.questions]
        for line in distributed.broadcast_from_main(
            lambda: references.notices(self.scorer, questions)
        ):
            self.reporter.line(line)

    def _compile_ahead(self, step: int) -> None:
        """Compiles the sampler's programs for the questions of this step and the held-out ones. The
        others are compiled in the background, on a CPU, where that would slow down the step, when
        they are needed.
        """
        asked = [*self.questions.batch(step), *self.evaluation.questions]
        buckets = sorted({self.engine.bucket(len(self.chat.render(q))) for q in asked})
        everything = sampling_programs(self.cfg, self.engine)
        needed = set(self.engine.needed_in(buckets, self.sampling))
        if self.evaluation.questions:
            evaluation = sampling_params.evaluation(self.cfg)
            needed.update(self.engine.needed_in(buckets, evaluation))
        first = [p for p in everything if p in needed]
        on_cpu = self.model.mesh.devices.flat[0].platform == "cpu"
        self.reporter.line(
            f"compiling {len(first)} of the sampler's {len(everything)} programs, for prompts of up"
            f" to {' and '.join(f'{b:,}' for b in buckets)} tokens; the others"
            f" {'when they are needed' if on_cpu else 'in the background'}. Fewer"
            " config.rollout.prompt_buckets mean fewer programs"
        )
        with self.reporter.phase("compile_ahead", len(first), "programs") as advance:
            self.engine.programs.compile(first, advance)
        if not on_cpu:
            self.engine.programs.compile_later(p for p in everything if p not in needed)

    def _dynamic_sampling(self) -> dynamic_sampling.DynamicSampling:
        return dynamic_sampling.DynamicSampling(
            lambda weights, prompts, key: self.pipeline.sample(
                weights, prompts, self.sampling, key
            ),
            self.questions,
            self.cfg.rollout,
            lambda rollouts: ~advantages.zero_advantage(advantages.of_rollouts(rollouts, self.cfg)),
        )

    def describe(self) -> str:
        """What runs where, and what it takes of each chip's memory, a line for each group."""
        spec, mesh = self.model.spec, self.model.mesh
        shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        device = mesh.devices.flat[0]
        reference = reference_bytes(self.cfg, spec, mesh, self.model.dtype)
        lines = [
            (
                f"{self.model.directory}: {spec.family}, {num_params(spec):,} parameters;"
                f" {device.device_kind} mesh {shape}, processes: {jax.process_count()};"
                f" {len(self.questions)} questions, {len(self.evaluation.questions)}"
                " held out"
            ),
            *memory_report.measure(self.cfg, self.learner, self.engine, reference).table(),
        ]
        return "\n".join(lines)

    def weights(self, state: RunState) -> Any:
        """The policy of a state, laid out for decoding."""
        return self.engine.to_rollout_layout(self.learner.policy(state.learner))

    @cached_property
    def reference_params(self) -> Any:
        """The frozen initial policy, laid out for the learner; in the dtype of computation where
        no KL term asks for it.
        """
        if self.learner.frozen:
            return self.learner.frozen
        return self.model.load(reference_dtype(self.cfg, self.model.dtype))

    @property
    def kl_params(self) -> Any:
        """What the KL term compares with; None without one."""
        return self.reference_params if self.cfg.loss.kl != "off" else None

    def gepa_adapter(self, state: RunState) -> GepaAdapter:
        """What GEPA calls in the prompt phase of a state."""
        policy, key, rollout_weights = (
            self.learner.policy(state.learner),
            self.key("gepa", state.step),
            RolloutWeights(self.engine.to_rollout_layout),
        )
        return GepaAdapter(
            self.pipeline,
            lambda: rollout_weights.of(policy),
            self.reflector(rollout_weights, policy, key),
            self.cfg,
            key,
            state.ledger,
        )

    @cached_property
    def endpoint(self) -> api.Endpoint:
        """The endpoint that reflects; only process 0 has its keys."""
        keys = api.read_keys(self.cfg.api.key_env) if distributed.is_main_process() else ()
        seed = f"{self.cfg.train.seed}/api"
        return api.Endpoint(self.cfg.api, self.cfg.gepa, keys, seed, log=self.reporter.line)

    def reflector(
        self, rollout_weights: "RolloutWeights", policy: Any, key: jax.Array
    ) -> reflectors.Reflector:
        """What writes new templates: the policy, its frozen start, or an endpoint."""
        match config.reflector(self.cfg):
            case "api":
                return reflectors.of_endpoint(self.endpoint)
            case "policy":
                params = policy
            case "reference":
                params = self.reference_params
            case other:
                raise ValueError(f"config.gepa.reflector={other!r}: no such reflector")
        sampling = sampling_params.reflection(self.cfg)
        return reflectors.of_model(self.pipeline, lambda: rollout_weights.of(params), sampling, key)

    def step_costs(
        self, rollouts: Sequence[Rollout], scored: Sequence[Example]
    ) -> dict[str, dict[str, float]]:
        """What a policy step has cost, by phase of the ledger."""
        costs = {
            "policy": self.pipeline.cost(rollouts),
            **cost.cost(self.model.spec, scored, self.cfg.loss.kl != "off"),
        }
        timers = {"policy": "rollout", "score": "score", "update": "update"}
        return {
            phase: {**amounts, "seconds": self.reporter.seconds.get(timers[phase], 0.0)}
            for phase, amounts in costs.items()
        }


class RolloutWeights:
    """Holds at most one parameter tree in rollout layout.

    Frees it before building the next, to bound peak memory. If the frozen model reflects, each
    iteration of GEPA builds two: the frozen model's, and the policy's after it.
    """

    def __init__(self, to_rollout_layout: Callable[[Any], Any]):
        self._lay_out, self._params, self._weights = to_rollout_layout, None, None

    def of(self, params: Any) -> Any:
        """These params in rollout layout. The caller must not keep them."""
        if params is not self._params:
            self._weights = None
            self._params, self._weights = params, self._lay_out(params)
        return self._weights


def make_engine(
    cfg: Config, model: Model, held: int = 0, device_memory: int | None = None
) -> Engine:
    """The sampler, with room for answers and, where the model reflects, for new templates.

    `held`: bytes per device that others hold; `device_memory`: all its bytes, where the device is
        not there to be asked.

    Raises:
        ConfigError: it does not fit into the devices' memory.
    """
    capacities = [cfg.rollout.max_new_tokens] + (
        [cfg.gepa.reflect_new_tokens] if config.model_reflects(cfg) else []
    )
    templated = cfg.assign.same_template_in_group or cfg.eval.template == "best"
    grouped_up_to = (
        config.max_templated_prompt_tokens(cfg) if templated else cfg.data.max_prompt_tokens
    )

    def make(slots: int) -> Engine:
        rollout, chat = dataclasses.replace(cfg.rollout, slots=slots), model.chat
        return Engine(
            model.spec,
            model.mesh,
            rollout,
            capacities,
            chat.stop_ids,
            chat.pad_id,
            model.dtype,
            grouped_up_to,
            cfg.train.router_replay,
        )

    return memory.fitting(make, cfg.rollout.slots, held, device_memory)


def sampling_programs(cfg: Config, engine: Engine) -> list[Program]:
    """Every program that a run's sampling can need, the first steps' first."""
    g = cfg.gepa
    longest = config.max_templated_prompt_tokens(cfg) if g.enabled else cfg.data.max_prompt_tokens
    uses = [(sampling_params.training(cfg), longest), (sampling_params.evaluation(cfg), longest)]
    if config.reflector(cfg):
        uses.append((sampling_params.candidates(cfg), longest))
    if config.model_reflects(cfg):
        uses.append((sampling_params.reflection(cfg), config.max_prompt_tokens(cfg)))
    return list(
        dict.fromkeys(p for sampling, prompt in uses for p in engine.needed(sampling, prompt))
    )
