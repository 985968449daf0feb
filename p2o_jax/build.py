"""From a Config to the parts that the loop uses: the only place that picks an implementation by name.

All that can be known to be wrong is collected and raised together, before anything compiles.
"""

import contextlib
import dataclasses
import datetime
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from p2o_jax import checkpoint, config, config_rules, footprint, limits, recorder, run_directory, runtime, sampling_params
from p2o_jax.checkpoint import Checkpoints
from p2o_jax.config import Config, ConfigError
from p2o_jax.data import benchmarks, sources
from p2o_jax.data.chat import Chat, load_tokenizer
from p2o_jax.data.questions import Questions
from p2o_jax.evaluation.heldout import Evaluation
from p2o_jax.gepa import api, reflection
from p2o_jax.models import hf, hf_config, identity, lora, sharding
from p2o_jax.models.spec import ModelSpec, Weight, num_params, weights
from p2o_jax.progress import Reporter
from p2o_jax.recorder import Recorder
from p2o_jax.records import Question, Rollout, RunState
from p2o_jax.rewards.verify import Verifier
from p2o_jax.rl import advantages, cost
from p2o_jax.rl.batch import Example
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout import fill, memory
from p2o_jax.rollout.answer import Answerer
from p2o_jax.rollout.engine import Engine, Program
from p2o_jax.rollout.stages import PhaseJournals, Reply, Stages, settings_digest
from p2o_jax.run_directory import RunDirectory
from p2o_jax.world import pretrain
from p2o_jax.world import questions as world_questions

WORLD = "world"


@dataclasses.dataclass(frozen=True)
class Model:
    """A model directory, opened but not loaded: what it is, how it talks, and where it will run."""

    directory: Path
    spec: ModelSpec
    chat: Chat
    mesh: Mesh
    dtype: Any  # of computation

    @cached_property
    def digests(self) -> identity.Digests:
        """What tells the directory's files from another model's."""
        return identity.digests(self.directory)

    def load(self, param_dtype: str) -> Any:
        """The weights of the directory, laid out for the learner; without adapters."""
        spec = dataclasses.replace(self.spec, lora=None)
        return hf.load(self.directory, spec, sharding.param_shardings(spec, self.mesh, sharding.LEARNER), param_dtype)


class Parts:
    """Everything of a run that is not its state, and the writing of its records."""

    def __init__(self, cfg: Config, workdir: Path, reporter: Reporter, restart: bool = False):
        """With `restart` the run begins anew, and the records of the one in `workdir` are moved away."""
        self.cfg, self.workdir, self.reporter = cfg, workdir, reporter
        compiles = runtime.CompileCounter()
        self.directory = run_directory.read(workdir, checkpoint.directory(workdir, cfg.checkpoint), restart)
        self.model, train, heldout = open_run(cfg, self.directory, reporter)
        self.chat = self.model.chat
        self.questions = Questions(train.questions, cfg.rollout.questions, cfg.train.seed)
        num_updates = cfg.train.epochs * self.questions.steps_per_epoch * (cfg.rollout.questions // config.minibatch_questions(cfg))
        bad_batch = workdir / "bad_batch.npz"
        self.learner = Learner(self.model.spec, self.model.mesh, cfg, num_updates, self.model.dtype, self.chat.pad_id, bad_batch)
        self.engine = make_engine(cfg, self.model, held_bytes(cfg, self.model.spec, self.model.mesh, self.learner))
        self.verifier = Verifier(cfg.reward)
        self._check_answers(train, *heldout)
        self.answerer = Answerer(self.engine, self.chat, self.verifier.judge, reporter)
        self.sampling = sampling_params.training(cfg)
        self.fill = self._dynamic_sampling() if cfg.rollout.dynamic_sampling else fill.as_asked
        self.evaluation = Evaluation(heldout, self.answerer, cfg.eval, sampling_params.evaluation(cfg), self.key("eval"))
        settings = run_directory.fixed_settings(cfg)
        in_phases = settings_digest({**settings, "model": self.model.digests})
        self.journals = PhaseJournals(workdir, cfg.train.seed, in_phases, reporter.line)
        self._write_run_files = lambda: self.directory.write(cfg, self.model.directory, self.model.digests, train, *heldout)
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

    def _check_answers(self, *parts: sources.Loaded | None) -> None:
        """Tells of reference answers that not even a response with the same text would match."""
        answers = [q.answer for part in parts if part and part.path != WORLD for q in part.questions]
        bad = runtime.from_process_0(lambda: self.verifier.self_check(answers)) if answers else []
        if bad:
            shown = ", ".join(repr(a[:60]) for a in bad[:5])
            self.reporter.line(f"{len(bad)} reference answers do not verify against themselves, e.g. {shown}: no response will be right")

    def key(self, *names: str | int) -> jax.Array:
        """The run's key of this name."""
        return runtime.key(self.cfg.train.seed, *names)

    def open_state(self) -> RunState:
        """The newest checkpoint's state, or the initial one; the run's records are cut to it.

        Nothing is written, and nothing compiled, before a checkpoint that is there was restored.
        """
        state = self.checkpoints.latest(self.learner.abstract_state())
        if state is None:
            self.directory.check_begin()
        self._write_run_files()
        self._compile_ahead()
        if state is None or self.model.spec.lora:
            shardings = sharding.param_shardings(self.model.spec, self.model.mesh, sharding.LEARNER)
            params = lora.add(self.model.spec, self.model.load(self.cfg.model.param_dtype), self.key("lora"), shardings)
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

    def _dynamic_sampling(self) -> fill.DynamicSampling:
        return fill.DynamicSampling(
            lambda weights, asks, key: self.answerer.answer(weights, asks, self.sampling, key),
            self.questions,
            self.cfg.rollout,
            lambda rollouts: ~advantages.zero_advantage(advantages.of_rollouts(rollouts, self.cfg)),
        )

    def _initial_state(self, fresh: Any) -> RunState:
        """With `gepa.schedule=first` a prompt phase on all questions comes before the first step."""
        if not (self.cfg.gepa.enabled and self.cfg.gepa.schedule == "first"):
            return RunState(fresh)
        return RunState(fresh, phase="prompts", hard_ids=tuple(q.id for q in self.questions.questions))

    def weights(self, state: RunState) -> Any:
        """The policy of a state, laid out for decoding."""
        return self.engine.lay_out(self.learner.policy(state.learner))

    @cached_property
    def reference_params(self) -> Any:
        """The frozen initial policy, laid out for the learner; in the dtype of computation where no KL term asks for it."""
        if self.learner.frozen:
            return self.learner.frozen
        return self.model.load(reference_dtype(self.cfg, self.model.dtype))

    @property
    def kl_params(self) -> Any:
        """What the KL term compares with; None without one."""
        return self.reference_params if self.cfg.loss.kl != "off" else None

    def stages(self, state: RunState) -> Stages:
        """What GEPA calls in the prompt phase of a state."""
        policy, key, laid_out = self.learner.policy(state.learner), self.key("gepa", state.step), LaidOut(self.engine.lay_out)
        weights, reply = lambda: laid_out.of(policy), self.reflector(laid_out, policy, key, state.step)
        return Stages(self.answerer, weights, reply, self.cfg, key, state.ledger, lambda made: self.learner.transfers(policy, made))

    def reflector(self, laid_out: "LaidOut", policy: Any, key: jax.Array, step: int) -> Reply:
        """What writes new templates: the policy, its frozen start, or an endpoint, which process 0 alone talks to."""
        g = self.cfg.gepa
        if g.reflector == "api":
            keys = api.read_keys(self.cfg.api.key_env) if runtime.is_main_process() else ()
            endpoint = api.Endpoint(self.cfg.api, g, keys, f"{self.cfg.train.seed}/api/{step}")
            return lambda prompts, names, spent: runtime.from_process_0(lambda: endpoint.complete(prompts, names, spent))
        params = policy if g.reflector == "policy" else self.reference_params
        how = sampling_params.reflection(self.cfg)
        return lambda prompts, names, spent: self.answerer.reply(laid_out.of(params), prompts, names, how, key)

    def step_costs(self, rollouts: Sequence[Rollout], scored: Sequence[Example]) -> dict[str, dict[str, float]]:
        """What a policy step has cost, by phase of the ledger."""
        costs = {"policy": self.answerer.cost(rollouts), **cost.cost(self.model.spec, scored, self.cfg.loss.kl != "off")}
        timers = {"policy": "rollout", "score": "score", "update": "update"}
        return {phase: {**amounts, "seconds": self.reporter.seconds.get(timers[phase], 0.0)} for phase, amounts in costs.items()}

    def close(self) -> None:
        """Writes what is pending and stops the workers."""
        with contextlib.ExitStack() as stack:  # in reverse; whichever fails, the others are closed
            for part in (self.record, self.verifier, self.checkpoints):
                stack.callback(part.close)


class LaidOut:
    """One model at a time, laid out for decoding: the last is let go of before another is made.

    Where the frozen model reflects, that is two lay-outs in each iteration of GEPA: it, and the policy again.
    """

    def __init__(self, lay_out: Callable[[Any], Any]):
        self._lay_out, self._params, self._weights = lay_out, None, None

    def of(self, params: Any) -> Any:
        """These params laid out; whoever calls must not keep them."""
        if params is not self._params:
            self._weights = None
            self._params, self._weights = params, self._lay_out(params)
        return self._weights


def open_run(cfg: Config, directory: RunDirectory, reporter: Reporter) -> tuple[Model, sources.Loaded, list[sources.Loaded]]:
    """The model, the training questions and the held-out sets; nothing is written before all of it is known to be good.

    Raises:
        ConfigError: with a line for everything wrong with config, workdir, mesh, model directory and data files.
    """
    found = [*config_rules.problems(cfg, len(jax.devices())), *directory.problems, *directory.changed_settings(cfg)]
    train, heldout = collect(found, lambda: load_questions(cfg)), collect(found, lambda: load_heldout(cfg)) or []
    found += directory.changed_questions(cfg, train, *heldout)
    own = run_directory.question_digests(cfg, train, *heldout)
    if not runtime.everywhere(own == runtime.from_process_0(lambda: own)):
        found.append("config.data: not all processes read the same questions; copy the files to every host, or give a path that all share")
    if (cfg.data.path == WORLD) != (cfg.model.path == WORLD):
        found.append(
            f"config.data.path={cfg.data.path} with config.model.path={cfg.model.path}: the built-in world's questions and its base model "
            "only go together; give both, or neither"
        )
    if cfg.gepa.enabled and cfg.gepa.reflector == "api":
        found += runtime.from_process_0(lambda: key_problems(cfg.api))
    found += runtime.from_process_0(lambda: reward_problems(cfg.reward)) if cfg.reward.fn else []
    found += runtime.from_process_0(lambda: recorder.problems(cfg))
    if found and cfg.model.path == WORLD:  # which would be pretrained first
        raise ConfigError(*found)
    model = collect(found, lambda: open_model(cfg, reporter, directory.date, directory.revision(cfg.model.path)))
    digests = model.digests if model else {}
    if not runtime.everywhere(digests == runtime.from_process_0(lambda: digests)):
        found.append(f"config.model.path={cfg.model.path}: not all processes read the same files; copy them to every host")
    if model:
        found += directory.changed_model(model.directory, digests)
        for part in (train, *heldout):
            found += sources.too_long(part, lambda q: len(model.chat.render(q)), cfg.data.max_prompt_tokens) if part else []
        found += reflection_problems(cfg, model.chat, train.questions if train else ()) if cfg.gepa.enabled else []
        lengths = [len(model.chat.render(q)) for part in (train, *heldout) if part for q in part.questions]
        found += limits.training_problems(cfg, model.spec, model.chat, max(lengths, default=0))
    space = (lambda: _space_problems(cfg, directory.path, model, len(train.questions))) if model and train else list[str]
    found += runtime.from_process_0(space)
    if not runtime.everywhere(not found) or not model or not train:  # what one process cannot open, none starts without
        raise ConfigError(*dict.fromkeys(found or ["another process cannot start; its own output says why"]))
    told = [line for part in (train, *heldout) for line in part.told]
    for line in [*config_rules.notices(cfg), *told, *sources.shared(train, heldout)]:
        reporter.line(line)
    return model, train, heldout


def open_model(cfg: Config, reporter: Reporter, date: str | None = None, revision: str | None = None) -> Model:
    """The model of `config.model.path`, on the mesh of `config.mesh`; pretrains the world's base if that is asked for.

    `date` (ISO) is what a chat template with the date in it shows; None: today's, the same on all processes.
    `revision` is the commit of a model from the hub; None: its newest.

    Raises:
        ConfigError: with a line for everything wrong with config, directory and mesh.
    """
    num_devices = len(jax.devices())
    found = config_rules.problems(cfg, num_devices)
    if not cfg.model.path:
        found.append("config.model.path is empty: name a model directory or a hub id")
    if found and cfg.model.path in ("", WORLD):
        raise ConfigError(*found)
    with reporter.phase("pretraining"):
        if cfg.model.path == WORLD:
            directory = pretrain.ensure_base(cfg.world, reporter.line)
        else:
            directory = hf_config.locate(cfg.model.path, revision)
    spec = collect(found, lambda: hf_config.read_spec(directory))
    date = date or runtime.from_process_0(lambda: datetime.date.today().isoformat())
    tokenizer = collect(found, lambda: load_tokenizer(directory))
    chat = collect(found, lambda: Chat(tokenizer, cfg.chat, date)) if tokenizer else None
    if spec:
        collect(found, lambda: hf.check(directory, spec))
    if spec and tokenizer:
        ids = tokenizer.token_ids, tokenizer.stop_ids, tokenizer.pad_id
        collect(found, lambda: limits.check_token_ids(directory, spec.vocab, *ids))
    if found or not spec or not chat:
        raise ConfigError(*found)
    mesh = sharding.make_mesh(config.mesh_shape(cfg.mesh, num_devices))
    padding = -spec.vocab % mesh.shape["tensor"]
    spec = dataclasses.replace(spec, lora=lora.from_config(cfg.lora), padded_vocab=spec.vocab + padding if padding else 0)
    for rules in (sharding.LEARNER, sharding.ROLLOUT):
        found += [line for line in sharding.problems(spec, mesh, rules) if line not in found]
    if found:
        raise ConfigError(*found)
    for line in chat.notices:
        reporter.line(line)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    dtype = {"auto": jnp.float32 if on_cpu else jnp.bfloat16, "float32": jnp.float32, "bfloat16": jnp.bfloat16}[cfg.model.compute_dtype]
    return Model(directory, spec, chat, mesh, dtype)


def make_engine(cfg: Config, model: Model, held: int = 0, device_memory: int | None = None) -> Engine:
    """The sampler, with room for answers and, where the model reflects, for new templates.

    `held`: bytes per device that others hold; `device_memory`: all its bytes, where the device is not there to be asked.

    Raises:
        ConfigError: it does not fit into the devices' memory.
    """
    capacities = [cfg.rollout.max_new_tokens] + ([cfg.gepa.reflect_new_tokens] if model_reflects(cfg) else [])
    templated = cfg.assign.same_template_in_group or cfg.eval.template == "best"
    grouped_up_to = config.max_templated_prompt_tokens(cfg) if templated else cfg.data.max_prompt_tokens

    def make(slots: int) -> Engine:
        rollout, chat = dataclasses.replace(cfg.rollout, slots=slots), model.chat
        return Engine(model.spec, model.mesh, rollout, capacities, chat.stop_ids, chat.pad_id, model.dtype, grouped_up_to)

    return memory.fitting(make, cfg.rollout.slots, held, device_memory)


def held_bytes(cfg: Config, spec: ModelSpec, mesh: Mesh, learner: Learner) -> int:
    """What training holds per device while it samples: the train state, and the whole initial model where that is needed besides."""
    return memory.per_device(learner.abstract_state()) + reference_bytes(cfg, spec, mesh, learner.dtype)


def reference_bytes(cfg: Config, spec: ModelSpec, mesh: Mesh, dtype: Any) -> int:
    """The frozen initial model per device, as the learner lays it out; 0 where nothing asks for it. Computation is in `dtype`.

    A KL term does, reflection by it, and adapters, which are trained on it.
    """
    reflects = cfg.gepa.enabled and cfg.gepa.reflector == "reference"
    if spec.lora is None and cfg.loss.kl == "off" and not reflects:
        return 0
    held = cfg.model.param_dtype if spec.lora else reference_dtype(cfg, dtype)
    spec = dataclasses.replace(spec, lora=None)
    return memory.per_device(sharding.abstract_params(spec, mesh, sharding.LEARNER, held))


def reference_dtype(cfg: Config, dtype: Any) -> str:
    """That of params where a KL term asks for the initial model, else that of computation."""
    return cfg.model.param_dtype if cfg.loss.kl != "off" else str(jnp.dtype(dtype))


def reflection_problems(cfg: Config, chat: Chat, questions: Sequence[Question] = ()) -> list[str]:
    """A line if no reflection prompt fits into its limit, and one if the longest, in its chat template, does not fit the sampler."""
    g, found = cfg.gepa, []
    comment = "." if cfg.reward.fn else ""  # the least that a reward function of one's own may say

    def least(question: Question) -> int:
        return reflection.least_tokens(question.text, question.answer, g, chat.count_tokens, comment)

    sizes = map(least, sorted(questions, key=lambda q: len(q.text)))  # the first mostly fits, and no other is counted
    if questions and not any(size <= g.reflect_prompt_tokens for size in sizes):
        found.append(
            f"config.gepa.reflect_prompt_tokens={g.reflect_prompt_tokens} is less than any reflection prompt takes, "
            f"{min(map(least, questions))} tokens with one example and an empty response: every proposal would be rejected"
        )
    around, longest = len(chat.render_text("")), config.max_prompt_tokens(cfg)
    if model_reflects(cfg) and g.reflect_prompt_tokens + around > longest:
        found.append(
            f"config.gepa.reflect_prompt_tokens={g.reflect_prompt_tokens} and {around} tokens of chat template and system prompt around "
            f"them must fit into the last of config.rollout.prompt_buckets={cfg.rollout.prompt_buckets}"
        )
    return found


def model_reflects(cfg: Config) -> bool:
    return cfg.gepa.enabled and cfg.gepa.reflector != "api"


def sampling_programs(cfg: Config, engine: Engine) -> list[Program]:
    """Every program that a run's sampling can need, the first steps' first."""
    g = cfg.gepa
    longest = config.max_templated_prompt_tokens(cfg) if g.enabled else cfg.data.max_prompt_tokens
    uses = [(sampling_params.training(cfg), longest), (sampling_params.evaluation(cfg), longest)]
    if g.enabled:
        uses.append((sampling_params.candidates(cfg), longest))
    if model_reflects(cfg):
        uses.append((sampling_params.reflection(cfg), config.max_prompt_tokens(cfg)))
    return list(dict.fromkeys(program for how, prompt in uses for program in engine.needed(how, prompt)))


def load_questions(cfg: Config) -> sources.Loaded:
    """The questions of config.data.path."""
    if not cfg.data.path:
        raise ConfigError("config.data.path is empty: name a file or folder of questions, hf:NAME or tfds:NAME@SPLIT")
    if cfg.data.path == WORLD:
        return _of_world(world_questions.train_questions(cfg.world))
    return sources.load(cfg.data.path, cfg.data)


def load_heldout(cfg: Config) -> list[sources.Loaded]:
    """The sets of config.data.eval_path, the dev set first; the world's own, or none, where it names none."""
    if cfg.data.eval_path:
        return benchmarks.load_sets(cfg.data.eval_path, cfg.data)
    return [_of_world(world_questions.heldout_questions(cfg.world))] if cfg.data.path == WORLD else []


def _of_world(made: Sequence[Question]) -> sources.Loaded:
    return sources.Loaded(WORLD, tuple(made), 0, tuple(range(1, len(made) + 1)))


def collect(found: list[str], make: Callable[[], Any]) -> Any:
    """What `make` returns; None where it raises a ConfigError, whose lines are added to `found`."""
    try:
        return make()
    except ConfigError as e:
        found += e.problems
        return None


def key_problems(cfg: config.Api) -> list[str]:
    """A line for each of the endpoint's keys that is not in the environment."""
    found: list[str] = []
    collect(found, lambda: api.read_keys(cfg.key_env))
    return found


def reward_problems(cfg: config.Reward) -> list[str]:
    """A line if config.reward.fn is not there to be called."""
    with Verifier(dataclasses.replace(cfg, workers=1)) as verifier:
        return verifier.problems()


def _space_problems(cfg: Config, workdir: Path, model: Model, num_questions: int) -> list[str]:
    """A line if the disk has no room for the run's checkpoints: params and both moments of what is trained."""
    trained = jax.tree.leaves(lora.split(model.spec, weights(model.spec))[0], is_leaf=lambda w: isinstance(w, Weight))
    moments = jnp.dtype(cfg.optim.mu_dtype).itemsize + 4
    state_bytes = sum(math.prod(w.shape) * (jnp.dtype(w.dtype(cfg.model.param_dtype)).itemsize + moments) for w in trained)
    num_steps = cfg.train.epochs * -(-num_questions // max(cfg.rollout.questions, 1))
    return checkpoint.space_problems(workdir, cfg.checkpoint, state_bytes, num_steps)


def describe(parts: Parts) -> str:
    """What runs where, and what it takes of each chip's memory, a line for each group."""
    spec, mesh = parts.model.spec, parts.model.mesh
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    device = mesh.devices.flat[0]
    reference = reference_bytes(parts.cfg, spec, mesh, parts.model.dtype)
    lines = [
        f"{parts.model.directory}: {spec.family}, {num_params(spec):,} parameters; {device.device_kind} mesh {shape}, "
        f"processes: {jax.process_count()}; "
        f"{len(parts.questions)} questions, {len(parts.evaluation.questions)} held out",
        *footprint.measure(parts.cfg, parts.learner, parts.engine, reference).table(),
    ]
    return "\n".join(lines)
