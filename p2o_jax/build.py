"""From a Config to the parts that the loop uses: the only place that picks an implementation by name.

All that can be known to be wrong is collected and raised together, before anything compiles.
"""

import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from p2o_jax import config, config_rules, runtime
from p2o_jax.checkpoint import Checkpoints
from p2o_jax.config import Config, ConfigError
from p2o_jax.data import sources
from p2o_jax.data.chat import Chat, load_tokenizer
from p2o_jax.data.questions import Questions
from p2o_jax.evaluate import Evaluation
from p2o_jax.gepa import api
from p2o_jax.models import hf, hf_config, lora, sharding
from p2o_jax.models.spec import ModelSpec, num_params
from p2o_jax.progress import Reporter
from p2o_jax.recorder import Recorder
from p2o_jax.records import Rollout, RunState, Sampling, Verdict, digest
from p2o_jax.rewards.verify import Verifier
from p2o_jax.rl import advantages, cost
from p2o_jax.rl.batch import Example
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout import fill
from p2o_jax.rollout.answer import Answerer
from p2o_jax.rollout.engine import Engine
from p2o_jax.rollout.stages import PhaseJournals, Reply, Stages, settings_digest
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

    def load(self, param_dtype: str) -> Any:
        """The weights of the directory, laid out for the learner; without adapters."""
        spec = dataclasses.replace(self.spec, lora=None)
        return hf.load(self.directory, spec, sharding.param_shardings(spec, self.mesh, sharding.LEARNER), param_dtype)


class Parts:
    """Everything of a run that is not its state, and the writing of its records."""

    def __init__(self, cfg: Config, workdir: Path, reporter: Reporter):
        self.cfg, self.workdir, self.reporter = cfg, workdir, reporter
        compiles = runtime.CompileCounter()
        self.model, train, heldout = open_run(cfg, workdir, reporter)
        self.chat = self.model.chat
        self.questions = Questions(train.questions, cfg.rollout.questions, cfg.train.seed)
        self.engine = make_engine(cfg, self.model)
        num_updates = cfg.train.epochs * self.questions.steps_per_epoch * (cfg.rollout.questions // config.minibatch_questions(cfg))
        bad_batch = workdir / "bad_batch.npz"
        self.learner = Learner(self.model.spec, self.model.mesh, cfg, num_updates, self.model.dtype, self.chat.pad_id, bad_batch)
        self.verifier = Verifier(cfg.reward)
        self._check_answers(train, heldout)
        self.answerer = Answerer(self.engine, self.chat, self._verify, reporter)
        r = cfg.rollout
        self.sampling = Sampling(r.temperature, r.max_new_tokens, r.top_k, r.top_p, r.min_p)
        self.fill = self._dynamic_sampling() if r.dynamic_sampling else fill.as_asked
        self.evaluation = Evaluation(heldout.questions if heldout else (), self.answerer, cfg.eval, r.max_new_tokens, self.key("eval"))
        self.journals = PhaseJournals(workdir, cfg.train.seed, settings_digest(_fixed_settings(cfg)), reporter.line)
        write_run_files(workdir, cfg, train, heldout)
        self.checkpoints = Checkpoints(workdir, cfg.checkpoint)
        self.record = Recorder(cfg, workdir, self.questions, self.engine, reporter, compiles)

    def _verify(self, texts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        """The verdicts of process 0, on every process: deadlines depend on the machine, and no host may decide alone."""
        rows = runtime.from_process_0(lambda: [dataclasses.astuple(v) for v in self.verifier.verify(texts, answers)])
        return [Verdict(*row) for row in rows]

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
        """The newest checkpoint's state, or the initial one; the run's records are cut to it."""
        state = self.checkpoints.latest(self.learner.abstract_state())
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
        """The frozen initial policy, laid out for the learner; only loaded where a KL term asks for it and nothing holds it already."""
        return self._initial_params() if self.cfg.loss.kl != "off" else None

    @cached_property
    def reference_weights(self) -> Any:
        """The frozen initial policy, laid out for decoding."""
        return self.engine.lay_out(self._initial_params())

    def _initial_params(self) -> Any:
        return self.learner.frozen or self.model.load(self.cfg.model.param_dtype)

    def stages(self, state: RunState) -> Stages:
        """What GEPA calls in the prompt phase of a state."""
        weights, key = self.weights(state), self.key("gepa", state.step)
        return Stages(self.answerer, weights, self.reflector(weights, key, state.step), self.cfg, key, state.ledger)

    def reflector(self, policy_weights: Any, key: jax.Array, step: int) -> Reply:
        """What writes new templates: the policy, its frozen start, or an endpoint, which process 0 alone talks to."""
        g = self.cfg.gepa
        if g.reflector == "api":
            keys = api.read_keys(self.cfg.api.key_env) if runtime.is_main_process() else ()
            endpoint = api.Endpoint(self.cfg.api, g, keys, f"{self.cfg.train.seed}/api/{step}")
            return lambda prompts, names, spent: runtime.from_process_0(lambda: endpoint.complete(prompts, names, spent))
        weights, how = (
            policy_weights if g.reflector == "policy" else self.reference_weights,
            Sampling(g.reflect_temperature, g.reflect_new_tokens),
        )
        return lambda prompts, names, spent: self.answerer.reply(weights, prompts, names, how, key)

    def step_costs(self, rollouts: Sequence[Rollout], scored: Sequence[Example]) -> dict[str, dict[str, float]]:
        """What a policy step has cost, by phase of the ledger."""
        costs = {"policy": self.answerer.cost(rollouts), **cost.cost(self.model.spec, scored, self.cfg.loss.kl != "off")}
        timers = {"policy": "rollout", "score": "score", "update": "update"}
        return {phase: {**amounts, "seconds": self.reporter.seconds.get(timers[phase], 0.0)} for phase, amounts in costs.items()}

    def close(self) -> None:
        """Writes what is pending and stops the workers."""
        self.checkpoints.close()
        self.verifier.close()
        self.record.close()


def open_run(cfg: Config, workdir: Path, reporter: Reporter) -> tuple[Model, sources.Loaded, sources.Loaded | None]:
    """The model, the training questions and the held-out ones; nothing is written before all of it is known to be good.

    Raises:
        ConfigError: with a line for everything wrong with config, workdir, mesh, model directory and data files.
    """
    found = config_rules.problems(cfg, len(jax.devices())) + changed_settings(workdir, cfg)
    train, heldout = (collect(found, lambda: load_questions(cfg, name)) for name in ("path", "eval_path"))
    found += changed_questions(workdir, train, heldout)
    if (cfg.data.path == WORLD) != (cfg.model.path == WORLD):
        found.append(
            f"config.data.path={cfg.data.path} with config.model.path={cfg.model.path}: the built-in world's questions and its base model "
            "only go together; give both, or neither"
        )
    if cfg.gepa.enabled and cfg.gepa.reflector == "api":
        found += runtime.from_process_0(lambda: key_problems(cfg.api))
    if found and cfg.model.path == WORLD:
        raise ConfigError(*found)
    model = collect(found, lambda: open_model(cfg, reporter))
    if model:
        for part in (train, heldout):
            found += sources.too_long(part, lambda q: len(model.chat.render(q)), cfg.data.max_prompt_tokens) if part else []
    if found or not train:
        raise ConfigError(*dict.fromkeys(found))
    for part in (train, heldout):
        if part and part.num_duplicates:
            reporter.line(f"{part.path}: {part.num_duplicates} duplicate questions dropped")
    return model, train, heldout


def open_model(cfg: Config, reporter: Reporter) -> Model:
    """The model of `config.model.path`, on the mesh of `config.mesh`; pretrains the world's base if that is asked for.

    Raises:
        ConfigError: with a line for everything wrong with config, directory and mesh.
    """
    num_devices = len(jax.devices())
    found = config_rules.problems(cfg, num_devices)
    if found and cfg.model.path == WORLD:
        raise ConfigError(*found)
    with reporter.phase("pretraining"):
        directory = pretrain.ensure_base(cfg.world, reporter.line) if cfg.model.path == WORLD else hf_config.locate(cfg.model.path)
    spec = collect(found, lambda: hf_config.read_spec(directory))
    chat = collect(found, lambda: Chat(load_tokenizer(directory), cfg.chat))
    if not any(directory.glob("*.safetensors")):
        found.append(f"config.model.path={cfg.model.path}: no *.safetensors files in it")
    if found or not spec or not chat:
        raise ConfigError(*found)
    mesh = sharding.make_mesh(config.mesh_shape(cfg.mesh, num_devices))
    padding = -spec.vocab % mesh.shape["tensor"]
    spec = dataclasses.replace(spec, lora=lora.from_config(cfg.lora), padded_vocab=spec.vocab + padding if padding else 0)
    for rules in (sharding.LEARNER, sharding.ROLLOUT):
        found += [line for line in sharding.problems(spec, mesh, rules) if line not in found]
    if found:
        raise ConfigError(*found)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    dtype = {"auto": jnp.float32 if on_cpu else jnp.bfloat16, "float32": jnp.float32, "bfloat16": jnp.bfloat16}[cfg.model.compute_dtype]
    return Model(directory, spec, chat, mesh, dtype)


def make_engine(cfg: Config, model: Model) -> Engine:
    """The sampler, with room for answers and, where the model reflects, for new templates."""
    reflects = cfg.gepa.enabled and cfg.gepa.reflector != "api"
    capacities = [cfg.rollout.max_new_tokens] + ([cfg.gepa.reflect_new_tokens] if reflects else [])
    return Engine(model.spec, model.mesh, cfg.rollout, capacities, model.chat.stop_ids, model.chat.pad_id, model.dtype)


def load_questions(cfg: Config, name: Literal["path", "eval_path"]) -> sources.Loaded | None:
    """The questions of config.data.path or config.data.eval_path; None where neither a file nor the world has any."""
    path = getattr(cfg.data, name)
    if cfg.data.path == WORLD and (name == "path" or not path):
        made = world_questions.train_questions(cfg.world) if name == "path" else world_questions.heldout_questions(cfg.world)
        return sources.Loaded(WORLD, tuple(made), 0, tuple(range(1, len(made) + 1)))
    return sources.load(path, cfg.data) if path else None


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


def changed_settings(workdir: Path, cfg: Config) -> list[str]:
    """A line for each setting in which the run that the workdir holds differs; none if it holds no run."""
    path = workdir / "config.json"
    if not path.exists():
        return []
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        return [f"{path}: damaged ({e}); give another folder"]
    changed = [d for d in _differences(before, _as_json(cfg)) if not d[0].startswith(_MAY_CHANGE)]
    return [
        f"config.{key}={now!r}: --workdir={workdir} holds a run with {there!r}; give another folder, or that" for key, there, now in changed
    ]


def changed_questions(workdir: Path, *parts: sources.Loaded | None) -> list[str]:
    """A line for each question file that is not what it was when the run in the workdir began."""
    path = workdir / "questions.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    now = _question_digests(*parts)
    rule = f"--workdir={workdir} holds a run on other questions than are in it now; give another folder, or the same questions"
    return [f"{name}: {rule}" for name, digest in before.items() if now.get(name, digest) != digest]


def _question_digests(*parts: sources.Loaded | None) -> dict[str, str]:
    return {part.path: digest(*(f"{q.id} {q.answer}" for q in part.questions)) for part in parts if part}


def write_run_files(workdir: Path, cfg: Config, *parts: sources.Loaded | None) -> None:
    """Writes config.json (resolved), questions.json (digests of what is asked) and versions.json of a run; process 0 alone does."""
    if not runtime.is_main_process():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(json.dumps(_as_json(cfg), indent=1), encoding="utf-8")
        (workdir / "questions.json").write_text(json.dumps(_question_digests(*parts), indent=1), encoding="utf-8")
        (workdir / "versions.json").write_text(json.dumps(versions(), indent=1), encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"--workdir={workdir}: {e}") from e


def _as_json(cfg: Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(cfg)))


def _fixed_settings(cfg: Config) -> dict[str, Any]:
    """The settings that may not change in a run, by key."""
    return {key: value for key, value, _ in _differences(_as_json(cfg), {}) if not key.startswith(_MAY_CHANGE)}


_MAY_CHANGE = (
    "mesh.",
    "api.",
    "optim.micro_rows",
    "reward.workers",
    "reward.timeout_s",
    "rollout.slots",
    "rollout.min_slots",
    "rollout.bank_tokens",
    "rollout.prefill_tokens",
    "train.num_samples_logged",
    "train.epochs",
    "train.max_bad_steps",
    "train.max_generated_tokens",
    "train.compile_cache",
    "checkpoint.",
    "eval.",
    "world.cache_dir",
)


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, and the commit where there is one."""
    root = Path(__file__).parent.parent
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "gepa", "math-verify", "p2o-jax")
    found = {"python": sys.version.split()[0], "platform": platform.platform(), "devices": str(jax.devices()[:1])}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        found["commit"] = head.stdout.strip()
    return found


def _differences(before: Any, now: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{where}.{k}" if where else k)]
    return [] if before == now else [(where, before, now)]


def describe(parts: Parts) -> str:
    """A few words on what runs where."""
    spec, mesh = parts.model.spec, parts.model.mesh
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    device = mesh.devices.flat[0]
    return (
        f"{parts.model.directory}: {spec.family}, {num_params(spec):,} parameters; {device.device_kind} mesh {shape}; "
        f"{len(parts.questions)} questions, {len(parts.evaluation.questions)} held out"
    )
