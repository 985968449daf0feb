"""From a Config to the parts that the loop uses: the only place that picks an implementation by name.

All that can be known to be wrong is collected and raised together, before anything compiles.
"""

import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

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
from p2o_jax.gepa import to_gepa_result
from p2o_jax.metrics import RunLog
from p2o_jax.models import hf, hf_config, sharding
from p2o_jax.models.spec import ModelSpec, num_params
from p2o_jax.progress import Reporter
from p2o_jax.records import Question, Rollout, RunState, Sampling, SearchResult
from p2o_jax.rewards.verify import Verifier
from p2o_jax.rl.learner import Learner
from p2o_jax.rollout.answer import Answerer
from p2o_jax.rollout.engine import Engine
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
        """The weights, laid out for the learner."""
        return hf.load(self.directory, self.spec, sharding.param_shardings(self.spec, self.mesh, sharding.LEARNER), param_dtype)


class Parts:
    """Everything of a run that is not its state, and the writing of its records."""

    def __init__(self, cfg: Config, workdir: Path, reporter: Reporter):
        self.cfg, self.workdir, self.reporter = cfg, workdir, reporter
        self.compiles = runtime.CompileCounter()
        self.model = open_model(cfg, reporter)
        train, heldout = load_questions(cfg, self.model.chat, reporter)
        self.chat = self.model.chat
        self.questions = Questions(train, cfg.rollout.questions, cfg.train.seed)
        self.engine = make_engine(cfg, self.model)
        num_updates = cfg.train.epochs * self.questions.steps_per_epoch * (cfg.rollout.questions // config.minibatch_questions(cfg))
        self.learner = Learner(self.model.spec, self.model.mesh, cfg, num_updates, self.model.dtype, self.chat.pad_id)
        self.verifier = Verifier(cfg.reward)
        self.answerer = Answerer(self.engine, self.chat, self.verifier.verify, reporter)
        r = cfg.rollout
        self.sampling = Sampling(r.temperature, r.max_new_tokens, r.top_k, r.top_p, r.min_p)
        self.evaluation = Evaluation(heldout, self.answerer, cfg.eval, r.max_new_tokens, self.key("eval"))
        self.checkpoints = Checkpoints(workdir, cfg.checkpoint)
        self.log: RunLog | None = None
        self._compile_seconds = 0.0

    def key(self, *names: str | int) -> jax.Array:
        """The run's key of this name."""
        return runtime.key(self.cfg.train.seed, *names)

    def open_state(self) -> RunState:
        """The newest checkpoint's state, or the initial one; the run's records are cut to it."""
        state = self.checkpoints.latest(self.learner.abstract_state())
        if state is None:
            state = RunState(self.learner.init(self.model.load(self.cfg.model.param_dtype)))
            self.checkpoints.save(state)
        else:
            self.reporter.line(f"resuming {self.workdir} at step {state.step}, next: {state.phase}")
        if runtime.is_main_process():
            self.log = RunLog(self.workdir, state.tick)
        return state

    @cached_property
    def reference_params(self) -> Any:
        """The frozen initial policy, laid out for the learner; only loaded where a KL term asks for it."""
        return self.model.load(self.cfg.model.param_dtype) if self.cfg.loss.kl != "off" else None

    @cached_property
    def reference_weights(self) -> Any:
        """The frozen initial policy, laid out for decoding."""
        return self.engine.lay_out(self.model.load(self.cfg.model.param_dtype))

    def reflector(self, policy_weights: Any) -> Any:
        """The decoding weights that write new templates."""
        return {"policy": lambda: policy_weights, "reference": lambda: self.reference_weights}[self.cfg.gepa.reflector]()

    def show_search(self, stats: Mapping[str, float]) -> None:
        """A line for an iteration of GEPA."""
        self.reporter.line(
            f"  gepa iteration {stats['iterations']:.0f}: {stats['rollouts_charged']:.0f}/{stats['budget']:.0f} rollouts, "
            f"{stats['accepted']:.0f} templates accepted, best dev {stats['best_dev_score']:.2f}, "
            f"covered {stats['frac_dev_covered']:.2f}"
        )

    def log_step(self, before: RunState, after: RunState, rollouts: Sequence[Rollout], values: dict[str, float]) -> None:
        """A policy step's metrics, samples and line."""
        values |= self._running(after)
        values["perf/tokens_per_s"] = values["rollout/generated_tokens"] / max(values.get("time/rollout_s", 0.0), 1e-9)
        total = self.cfg.train.epochs * self.questions.steps_per_epoch
        self.reporter.line(
            f"step {after.step}/{total}  reward {values['reward/mean']:.3f}  zero-advantage {values['rollout/frac_zero_advantage']:.2f}  "
            f"hard {values['hard/questions_epoch']:.0f}  truncated {values['rollout/frac_truncated']:.2f}  "
            f"{values['perf/tokens_per_s']:,.0f} tokens/s  {values['ledger/generated_tokens']:,.0f} tokens"
        )
        if self.log:
            self.log.metrics(before.tick, before.step, values)
            shown = rollouts[:: max(len(rollouts) // max(self.cfg.train.num_samples_logged, 1), 1)][: self.cfg.train.num_samples_logged]
            self.log.rows("samples", before.tick, [_sample(r, before.step) for r in shown])

    def log_search(self, before: RunState, after: RunState, result: SearchResult | None) -> None:
        """A prompt phase's metrics, templates and line."""
        epoch = self.questions.epoch(before.step - 1)
        values: dict[str, float] = {"gepa/hard_questions": len(before.hard_ids), "gepa/skipped": float(result is None)}
        if result is not None:
            values |= {f"gepa/{name}": value for name, value in result.stats.items()}
            spent = after.ledger.total("generated_tokens") - before.ledger.total("generated_tokens")
            values["gepa/generated_tokens"] = spent
            self.reporter.line(
                f"epoch {epoch}: {len(before.hard_ids)} hard questions, {len(result.cover)} templates chosen, {spent:,.0f} tokens"
            )
        elif self.cfg.gepa.enabled:
            rule = f"fewer than config.gepa.min_hard={self.cfg.gepa.min_hard}: no prompt phase"
            self.reporter.line(f"epoch {epoch}: {len(before.hard_ids)} hard questions, {rule}")
        if self.log:
            self.log.metrics(before.tick, before.step, values | self._running(after))
            if result is not None:
                self.log.rows("templates", before.tick, _template_rows(result, epoch))
                path = self.workdir / "gepa" / f"epoch_{epoch}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(to_gepa_result(result)), encoding="utf-8")

    def log_evaluation(self, state: RunState, values: dict[str, float], row: dict[str, Any], spent: Mapping[str, float]) -> None:
        """An evaluation's metrics and line."""
        tokens = state.ledger.total("generated_tokens")
        families = "  ".join(f"{family} {score:.2f}" for family, score in row["by_family"].items())
        self.reporter.line(f"eval at step {state.step}: plain accuracy {row['accuracy']:.3f}  ({families})  after {tokens:,.0f} tokens")
        if self.log:
            self.log.metrics(state.tick, state.step, values | {"ledger/generated_tokens": tokens} | self._times())
            self.log.rows("evaluations", state.tick, [{"step": state.step, "generated_tokens": tokens, **row, "cost": spent}])

    def close(self) -> None:
        """Writes what is pending and stops the workers."""
        self.checkpoints.close()
        self.verifier.close()
        if self.log:
            self.log.close()

    def _running(self, after: RunState) -> dict[str, float]:
        busy, steps = self.engine.take_busy()
        return {
            **self._times(),
            "ledger/generated_tokens": after.ledger.total("generated_tokens"),
            "ledger/rollouts": after.ledger.total("rollouts"),
            "perf/compiles": self.compiles.count,
            "perf/frac_slots_busy": busy / max(steps * self.cfg.rollout.slots, 1),
        }

    def _times(self) -> dict[str, float]:
        times = {f"time/{name}_s": seconds for name, seconds in self.reporter.take_seconds().items()}
        times["time/compile_s"], self._compile_seconds = self.compiles.seconds - self._compile_seconds, self.compiles.seconds
        return times


def open_model(cfg: Config, reporter: Reporter) -> Model:
    """The model of `config.model.path`, on the mesh of `config.mesh`; pretrains the world's base if that is asked for.

    Raises:
        ConfigError: with a line for everything wrong with config, directory and mesh.
    """
    num_devices = len(jax.devices())
    found = config_rules.problems(cfg, num_devices)
    if found:
        raise ConfigError(*found)
    mesh = sharding.make_mesh(config.mesh_shape(cfg.mesh, num_devices))
    if cfg.model.path == WORLD:
        directory = _world_base(cfg, reporter)
    else:
        directory = hf_config.locate(cfg.model.path)
    spec = collect(found, lambda: hf_config.read_spec(directory))
    chat = collect(found, lambda: Chat(load_tokenizer(directory), cfg.chat))
    if spec:
        for rules in (sharding.LEARNER, sharding.ROLLOUT):
            found += [line for line in sharding.problems(spec, mesh, rules) if line not in found]
        if not any(directory.glob("*.safetensors")):
            found.append(f"config.model.path={cfg.model.path}: no *.safetensors files in it")
    if found or not spec or not chat:
        raise ConfigError(*found)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    dtype = {"auto": jnp.float32 if on_cpu else jnp.bfloat16, "float32": jnp.float32, "bfloat16": jnp.bfloat16}[cfg.model.compute_dtype]
    return Model(directory, spec, chat, mesh, dtype)


def make_engine(cfg: Config, model: Model) -> Engine:
    """The sampler, with room for answers and, where the model reflects, for new templates."""
    capacities = [cfg.rollout.max_new_tokens] + ([cfg.gepa.reflect_new_tokens] if cfg.gepa.enabled else [])
    return Engine(model.spec, model.mesh, cfg.rollout, capacities, model.chat.stop_ids, model.chat.pad_id, model.dtype)


def load_questions(cfg: Config, chat: Chat, reporter: Reporter) -> tuple[Sequence[Question], Sequence[Question]]:
    """Training and held-out questions.

    Raises:
        ConfigError: with a line for everything wrong with the files, prompts that are too long included.
    """
    found: list[str] = []
    if cfg.data.path == WORLD:
        return world_questions.train_questions(cfg.world), world_questions.heldout_questions(cfg.world)
    loaded = {}
    for name in ("path", "eval_path"):
        path = getattr(cfg.data, name)
        loaded[name] = collect(found, lambda: sources.load(path, cfg.data)) if path else None
        if loaded[name] and loaded[name].num_duplicates:
            reporter.line(f"config.data.{name}: {loaded[name].num_duplicates} duplicate questions dropped")
        if loaded[name]:
            found += sources.too_long(loaded[name], path, lambda q: len(chat.render(q)), cfg.data.max_prompt_tokens)
    if found:
        raise ConfigError(*found)
    train, heldout = loaded["path"], loaded["eval_path"]
    assert train is not None
    return train.questions, heldout.questions if heldout else ()


def collect(found: list[str], make: Callable[[], Any]) -> Any:
    """What `make` returns; None where it raises a ConfigError, whose lines are added to `found`."""
    try:
        return make()
    except ConfigError as e:
        found += e.problems
        return None


def write_run_files(workdir: Path, cfg: Config) -> None:
    """config.json (resolved) and versions.json of a run.

    Raises:
        ConfigError: the folder holds a run of other settings, or cannot be written.
    """
    path = workdir / "config.json"
    values = json.loads(json.dumps(dataclasses.asdict(cfg)))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            changed = [f"config.{k}: {a!r} there, {b!r} now" for k, a, b in _differences(before, values) if not k.startswith(_MAY_CHANGE)]
            if changed:
                raise ConfigError(f"--workdir={workdir} holds a run of other settings; give another folder, or the same settings", *changed)
        path.write_text(json.dumps(values, indent=1), encoding="utf-8")
        (workdir / "versions.json").write_text(json.dumps(versions(), indent=1), encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"--workdir={workdir}: {e}") from e


_MAY_CHANGE = ("mesh.", "train.epochs", "train.max_generated_tokens", "train.compile_cache", "checkpoint.", "eval.", "world.cache_dir")


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


def _world_base(cfg: Config, reporter: Reporter) -> Path:
    with reporter.phase("pretraining"):
        return pretrain.ensure_base(cfg.world, reporter.line)


def _differences(before: Any, now: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [d for k in keys for d in _differences(before.get(k), now.get(k), f"{where}.{k}" if where else k)]
    return [] if before == now else [(where, before, now)]


def _sample(r: Rollout, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "question_id": r.ask.question.id,
        "question": r.ask.question.text,
        "answer": r.ask.question.answer,
        "template": r.ask.template,
        "response": r.text,
        "score": r.verdict.answer_score,
        "status": r.verdict.status,
        "tokens": len(r.completion.token_ids),
        "stopped": r.completion.stopped,
    }


def _template_rows(result: SearchResult, epoch: int) -> list[dict[str, Any]]:
    """A row per candidate (its place in the cover, dev scores by question) and per rejected proposal."""
    rows: list[dict[str, Any]] = []
    for z, (text, parent, scores) in enumerate(zip(result.templates, result.parents, result.score_ZN, strict=True)):
        dev = dict(zip(result.dev_ids, scores, strict=True))
        rank = result.cover.index(z) if z in result.cover else None
        mean = sum(scores) / max(len(scores), 1)
        rows.append({"epoch": epoch, "candidate": z, "text": text, "parent": parent, "dev_score": mean, "cover_rank": rank, "dev": dev})
    return rows + [{"epoch": epoch, **event} for event in result.events if event["outcome"] != "accepted"]


def describe(parts: Parts) -> str:
    """A few words on what runs where."""
    spec, mesh = parts.model.spec, parts.model.mesh
    shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    device = mesh.devices.flat[0]
    return (
        f"{parts.model.directory}: {spec.family}, {num_params(spec):,} parameters; {device.device_kind} mesh {shape}; "
        f"{len(parts.questions)} questions, {len(parts.evaluation.questions)} held out"
    )
