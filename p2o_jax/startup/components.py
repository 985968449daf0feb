"""From a Config to the parts that the loop uses: the only place that picks an implementation by
name.

All that can be known to be wrong is collected and raised together, before anything compiles.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax

from p2o_jax import config
from p2o_jax.config import Config
from p2o_jax.data import sources
from p2o_jax.data.questions import Questions
from p2o_jax.evaluation.heldout import Evaluation
from p2o_jax.gepa import api
from p2o_jax.models import lora, sharding
from p2o_jax.models.spec import num_params
from p2o_jax.rewards.verify import Verifier
from p2o_jax.rl import advantages, cost
from p2o_jax.rl.batch import Example
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout import dynamic_sampling, memory, sampling_params
from p2o_jax.rollout.engine import Engine, Program
from p2o_jax.rollout.gepa_adapter import GepaAdapter, PhaseJournals, Reply, settings_digest
from p2o_jax.rollout.pipeline import RolloutPipeline
from p2o_jax.runtime import distributed, rng
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import memory_report, run_directory
from p2o_jax.startup.memory_report import held_bytes, reference_bytes
from p2o_jax.startup.model import WORLD, Model, reference_dtype
from p2o_jax.startup.preflight import model_reflects, open_run
from p2o_jax.state import RunState
from p2o_jax.tracking import checkpoint
from p2o_jax.tracking.checkpoint import Checkpoints
from p2o_jax.tracking.recorder import Recorder
from p2o_jax.types import Rollout


class Components:
    """Everything of a run that is not its state, and the writing of its records."""

    def __init__(self, cfg: Config, workdir: Path, reporter: Reporter, restart: bool = False):
        """With `restart` the run begins anew, and the records of the one in `workdir` are moved
        away.
        """
        self.cfg, self.workdir, self.reporter = cfg, workdir, reporter
        compiles = distributed.CompileCounter()
        self.directory = run_directory.read(
            workdir, checkpoint.directory(workdir, cfg.checkpoint), restart
        )
        self.model, train, heldout = open_run(cfg, self.directory, reporter)
        self.chat = self.model.chat
        self.questions = Questions(train.questions, cfg.rollout.questions, cfg.train.seed)
        num_updates = (
            cfg.train.epochs
            * self.questions.steps_per_epoch
            * (cfg.rollout.questions // config.minibatch_questions(cfg))
        )
        bad_batch = workdir / "bad_batch.npz"
        self.learner = Learner(
            self.model.spec,
            self.model.mesh,
            cfg,
            num_updates,
            self.model.dtype,
            self.chat.pad_id,
            bad_batch,
        )
        self.engine = make_engine(
            cfg, self.model, held_bytes(cfg, self.model.spec, self.model.mesh, self.learner)
        )
        self.verifier = Verifier(cfg.reward)
        self._check_answers(train, *heldout)
        self.pipeline = RolloutPipeline(self.engine, self.chat, self.verifier.judge, reporter)
        self.sampling = sampling_params.training(cfg)
        self.fill = (
            self._dynamic_sampling() if cfg.rollout.dynamic_sampling else dynamic_sampling.as_asked
        )
        self.evaluation = Evaluation(
            heldout, self.pipeline, cfg.eval, sampling_params.evaluation(cfg), self.key("eval")
        )
        settings = run_directory.fixed_settings(cfg)
        in_phases = settings_digest({**settings, "model": self.model.digests})
        self.journals = PhaseJournals(workdir, cfg.train.seed, in_phases, reporter.line)
        self._write_run_files = lambda: self.directory.write(
            cfg, self.model.directory, self.model.digests, train, *heldout
        )
        if restart:
            reporter.line(self.directory.put_away())
        self.checkpoints = Checkpoints(
            workdir,
            cfg.checkpoint,
            reporter.line,
            settings_digest(settings),
            self.learner.unpadded_state(),
            run_directory.evaluation_digest(cfg, heldout),
            self.directory.note_checkpoint,
        )
        self.record = Recorder(cfg, workdir, self.questions, self.engine, reporter, compiles)

    def _check_answers(self, *components: sources.Loaded | None) -> None:
        """Tells of reference answers that not even a response with the same text would match."""
        answers = [
            q.answer for part in components if part and part.path != WORLD for q in part.questions
        ]
        bad = (
            distributed.broadcast_from_main(lambda: self.verifier.self_check(answers))
            if answers
            else []
        )
        if bad:
            shown = ", ".join(repr(a[:60]) for a in bad[:5])
            self.reporter.line(
                f"{len(bad)} reference answers do not verify against themselves, e.g. {shown}: no"
                " response will be right"
            )

    def key(self, *names: str | int) -> jax.Array:
        """The run's key of this name."""
        return rng.key(self.cfg.train.seed, *names)

    def open_state(self) -> RunState:
        """The newest checkpoint's state, or the initial one; the run's records are cut to it.

        Nothing is written, and nothing compiled, before a checkpoint that is there was restored.
        """
        state = self.checkpoints.latest(self.learner.abstract_state(), RunState.from_json)
        if state is None:
            self.directory.check_begin()
        self._write_run_files()
        self._compile_ahead()
        if state is None or self.model.spec.lora:
            shardings = sharding.param_shardings(self.model.spec, self.model.mesh, sharding.LEARNER)
            params = lora.add(
                self.model.spec,
                self.model.load(self.cfg.model.param_dtype),
                self.key("lora"),
                shardings,
            )
            fresh = self.learner.init(params)
            state = state or self._initial_state(fresh)
        if state.tick == 0:
            self.checkpoints.save(state)
        else:
            self.reporter.line(f"resuming {self.workdir} at step {state.step}, next: {state.phase}")
        self.record.open(state.tick, state.step)
        return state

    def _compile_ahead(self) -> None:
        programs = sampling_programs(self.cfg, self.engine)
        with self.reporter.phase("compile_ahead", len(programs), "programs") as advance:
            self.engine.programs.compile(programs, advance)

    def _dynamic_sampling(self) -> dynamic_sampling.DynamicSampling:
        return dynamic_sampling.DynamicSampling(
            lambda weights, prompts, key: self.pipeline.sample(
                weights, prompts, self.sampling, key
            ),
            self.questions,
            self.cfg.rollout,
            lambda rollouts: ~advantages.zero_advantage(advantages.of_rollouts(rollouts, self.cfg)),
        )

    def _initial_state(self, fresh: Any) -> RunState:
        """With `gepa.schedule=first` a prompt phase on all questions comes before the first
        step.
        """
        if not (self.cfg.gepa.enabled and self.cfg.gepa.schedule == "first"):
            return RunState(fresh)
        return RunState(
            fresh, phase="prompts", hard_ids=tuple(q.id for q in self.questions.questions)
        )

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
        weights, reply = (
            lambda: rollout_weights.of(policy),
            self.reflector(rollout_weights, policy, key, state.step),
        )
        return GepaAdapter(
            self.pipeline,
            weights,
            reply,
            self.cfg,
            key,
            state.ledger,
            lambda made: self.learner.transfers(policy, made),
        )

    def reflector(
        self, rollout_weights: "RolloutWeights", policy: Any, key: jax.Array, step: int
    ) -> Reply:
        """What writes new templates: the policy, its frozen start, or an endpoint, which process
        0 alone talks to.
        """
        g = self.cfg.gepa
        if g.reflector == "api":
            keys = api.read_keys(self.cfg.api.key_env) if distributed.is_main_process() else ()
            endpoint = api.Endpoint(self.cfg.api, g, keys, f"{self.cfg.train.seed}/api/{step}")
            return lambda prompts, names, spent: distributed.broadcast_from_main(
                lambda: endpoint.complete(prompts, names, spent)
            )
        params = policy if g.reflector == "policy" else self.reference_params
        how = sampling_params.reflection(self.cfg)
        return lambda prompts, names, spent: self.pipeline.reply(
            rollout_weights.of(params), prompts, names, how, key
        )

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

    def close(self) -> None:
        """Writes what is pending and stops the workers."""
        with contextlib.ExitStack() as stack:  # in reverse; whichever fails, the others are closed
            for part in (self.record, self.verifier, self.checkpoints):
                stack.callback(part.close)


class RolloutWeights:
    """One model at a time, laid out for decoding: the last is let go of before another is made.

    Where the frozen model reflects, that is two lay-outs in each iteration of GEPA: it, and the
    policy again.
    """

    def __init__(self, to_rollout_layout: Callable[[Any], Any]):
        self._lay_out, self._params, self._weights = to_rollout_layout, None, None

    def of(self, params: Any) -> Any:
        """These params laid out; whoever calls must not keep them."""
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
        [cfg.gepa.reflect_new_tokens] if model_reflects(cfg) else []
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
        )

    return memory.fitting(make, cfg.rollout.slots, held, device_memory)


def sampling_programs(cfg: Config, engine: Engine) -> list[Program]:
    """Every program that a run's sampling can need, the first steps' first."""
    g = cfg.gepa
    longest = config.max_templated_prompt_tokens(cfg) if g.enabled else cfg.data.max_prompt_tokens
    uses = [(sampling_params.training(cfg), longest), (sampling_params.evaluation(cfg), longest)]
    if g.enabled:
        uses.append((sampling_params.candidates(cfg), longest))
    if model_reflects(cfg):
        uses.append((sampling_params.reflection(cfg), config.max_prompt_tokens(cfg)))
    return list(
        dict.fromkeys(program for how, prompt in uses for program in engine.needed(how, prompt))
    )


def describe(components: Components) -> str:
    """What runs where, and what it takes of each chip's memory, a line for each group."""
    spec, mesh = components.model.spec, components.model.mesh
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    device = mesh.devices.flat[0]
    reference = reference_bytes(components.cfg, spec, mesh, components.model.dtype)
    lines = [
        (
            f"{components.model.directory}: {spec.family}, {num_params(spec):,} parameters;"
            f" {device.device_kind} mesh {shape}, processes: {jax.process_count()};"
            f" {len(components.questions)} questions, {len(components.evaluation.questions)}"
            " held out"
        ),
        *memory_report.measure(
            components.cfg, components.learner, components.engine, reference
        ).table(),
    ]
    return "\n".join(lines)
