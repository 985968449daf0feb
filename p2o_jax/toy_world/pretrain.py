"""The base model of the toy world.

It is pretrained from scratch on first use and cached as a Hugging Face model directory.
"""

import dataclasses
import functools
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from optax.contrib import MuonDimensionNumbers, muon

from p2o_jax import config, types
from p2o_jax.models import hf, sharding, transformer
from p2o_jax.models.spec import ModelSpec
from p2o_jax.runtime import distributed, files
from p2o_jax.toy_world import documents, languages, measure, packing, tokenizer
from p2o_jax.toy_world.languages import Language

FORMAT = 1  # part of the cache key; increase it when documents or training change

REFLECTION_EVERY = 8  # every eighth batch has reflection documents
MUON_LR, ADAM_LR, WARMUP_STEPS, FINAL_LR = 0.02, 0.004, 30, 0.05
PROGRESS_STEPS = 100

Progress = Callable[[str], None]

# Weights of all layers [L, ...]: (input axes, output axes) of each matrix.
_MATRICES = {
    "q": MuonDimensionNumbers(1, (2, 3)),
    "k": MuonDimensionNumbers(1, (2, 3)),
    "v": MuonDimensionNumbers(1, (2, 3)),
    "o": MuonDimensionNumbers((1, 2), 3),
    "gate": MuonDimensionNumbers(1, 2),
    "up": MuonDimensionNumbers(1, 2),
    "down": MuonDimensionNumbers(1, 2),
}


class PretrainState(NamedTuple):
    """Parameters and optimizer state of the pretraining."""

    params: Any
    opt_state: Any


def base_directory(cfg: config.WorldConfig) -> Path:
    """The directory of this world's base model, whether it exists or not.

    Its name depends on all settings that the weights depend on, and on the vocabulary.
    """
    ignored = ("size", "cache_dir", "hard_per_family", "easy_per_family", "heldout_per_family")
    world = {key: value for key, value in dataclasses.asdict(cfg).items() if key not in ignored}
    name = types.digest(
        json.dumps(world, sort_keys=True), str(FORMAT), *tokenizer.vocabulary(languages.of(cfg))
    )
    return Path(cfg.cache_dir) / f"base-{name}"


def ensure_base(cfg: config.WorldConfig, progress: Progress = lambda line: None) -> Path:
    """Returns the base model's directory, and pretrains the model if it does not exist.

    `progress` is called with lines of text. The directory is created complete or not at all. Its
    `world.json` holds the results of `measure.chain_figures`, the final loss, and the duration in
    seconds.
    """
    target = base_directory(cfg)
    if distributed.broadcast_from_main(target.exists):
        return target
    for line in files.leftovers(target):
        progress(line)
    spec = model_spec(cfg)
    begin = time.perf_counter()
    params, loss = pretrain(cfg, spec, progress)
    seconds = time.perf_counter() - begin
    figures = measure.chain_figures(spec, params, languages.of(cfg), cfg.seed, cfg.row_tokens)
    plain, strong = _mean(figures, "p_chain_plain"), _mean(figures, "p_chain_strong")
    progress(
        f"pretrained in {seconds:.0f} s: P(chain | plain) {plain:.2g}, under a strong phrase"
        f" {strong:.2g}"
    )
    report = {
        "p_chain_plain": plain,
        "p_chain_strong": strong,
        "families": figures,
        "loss": loss,
        "seconds": round(seconds, 1),
    }
    report["world"] = dataclasses.asdict(cfg)
    making = Path(distributed.broadcast_from_main(lambda: str(files.unused(target))))
    with files.removed_on_failure(making) if distributed.is_main_process() else nullcontext():
        _save(making, languages.of(cfg), spec, params, report)
        distributed.broadcast_from_main(lambda: _put_in_place(making, target))
    return target


def _put_in_place(making: Path, target: Path) -> None:
    files.sync_folder(making)
    try:
        making.rename(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(making)  # another run has created the same directory


def model_spec(cfg: config.WorldConfig) -> ModelSpec:
    """The base model: a small Qwen3 with tied embeddings."""
    return ModelSpec(
        family="qwen3",
        vocab=len(tokenizer.vocabulary(languages.of(cfg))),
        width=cfg.width,
        layers=cfg.layers,
        heads=cfg.heads,
        kv_heads=cfg.kv_heads,
        head_dim=cfg.head_dim,
        mlp=cfg.mlp,
        qk_norm=True,
        tied=True,
        max_positions=1024,
    )


def pretrain(cfg: config.WorldConfig, spec: ModelSpec, progress: Progress) -> tuple[Any, float]:
    """Pretrains the model for `cfg.steps` steps.

    Returns its parameters, and the mean loss over the last 50 question batches.
    """
    questions_rng, reflections_rng = (
        random.Random(f"{cfg.seed}/world/pretrain/{kind}") for kind in ("questions", "reflections")
    )
    language, dial = languages.of(cfg), cfg.p_chain_plain
    questions = packing.Packer(
        cfg.batch_rows,
        cfg.row_tokens,
        language,
        lambda: documents.question_document(questions_rng, language, dial),
    )
    reflections = packing.Packer(
        *language.reflection_shape,
        language,
        lambda: documents.reflection_document(reflections_rng, language, dial),
    )
    mesh = sharding.make_mesh((jax.device_count(), 1, 1))
    params = jax.device_put(
        transformer.init(spec, jax.random.key(cfg.seed)), sharding.replicated(mesh)
    )
    state = PretrainState(params, optimizer(cfg.steps).init(params))
    begin, losses = time.perf_counter(), []
    for step in range(cfg.steps):
        if step % REFLECTION_EVERY == REFLECTION_EVERY - 1:
            state, _ = train_step(spec, cfg.steps, state, _place(reflections.batch(), mesh))
        else:
            state, loss = train_step(spec, cfg.steps, state, _place(questions.batch(), mesh))
            losses = [*losses[-49:], loss]
        if (step + 1) % PROGRESS_STEPS == 0:
            mean, seconds = float(jnp.mean(jnp.stack(losses))), time.perf_counter() - begin
            left = seconds / (step + 1) * (cfg.steps - step - 1)
            progress(
                f"pretraining the world's base model: step {step + 1} of {cfg.steps}, loss"
                f" {mean:.3f}, {left:.0f} s left"
            )
    return state.params, float(jnp.mean(jnp.stack(losses)))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    spec: ModelSpec, num_steps: int, state: PretrainState, batch: packing.Batch
) -> tuple[PretrainState, jax.Array]:
    """Makes one step on a batch. Returns the new state and the weighted mean loss of its tokens."""

    def loss_fn(params: Any) -> jax.Array:
        token_BT, position_BT, segment_BT = map(
            jnp.asarray, (batch.token_BT, batch.position_BT, batch.segment_BT)
        )
        logp_BT, *_ = transformer.token_logps(
            spec, params, token_BT, position_BT, segment_BT, chunk=token_BT.size
        )
        predicted_BT = batch.weight_BT * (batch.position_BT > 0)
        return -jnp.sum(logp_BT * predicted_BT) / jnp.sum(predicted_BT)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = optimizer(num_steps).update(grads, state.opt_state, state.params)
    return PretrainState(optax.apply_updates(state.params, updates), opt_state), loss


def _place(batch: packing.Batch, mesh: Mesh) -> packing.Batch:
    """The batch on the devices. Its rows are split over them if their number is divisible."""
    divides = batch.token_BT.shape[0] % mesh.size == 0
    where = sharding.batch_sharding(mesh) if divides else sharding.replicated(mesh)
    return jax.tree.map(lambda x: distributed.put(x, where), batch)


def optimizer(num_steps: int) -> optax.GradientTransformation:
    """Muon for the layers' matrices, and Adam for all other weights.

    The learning rate warms up linearly, then falls to 5 % along a cosine.
    """

    def schedule(peak: float) -> optax.Schedule:
        warmup = min(WARMUP_STEPS, num_steps // 2)
        return optax.warmup_cosine_decay_schedule(
            0.0, peak, warmup, num_steps, end_value=FINAL_LR * peak
        )

    return muon(
        schedule(MUON_LR),
        adam_learning_rate=schedule(ADAM_LR),
        muon_weight_dimension_numbers=_matrices,
    )


def _matrices(params: Any) -> Any:
    """The axes of each weight's matrices, or None for weights that Adam updates.

    Values masked by optax are passed on unchanged.
    """

    def axes(path: tuple[Any, ...], _: Any) -> MuonDimensionNumbers | None:
        return _MATRICES.get(path[-1].key) if path[0].key == "blocks" else None

    return jax.tree_util.tree_map_with_path(axes, params)


def _save(
    directory: Path, language: Language, spec: ModelSpec, params: Any, report: dict[str, Any]
) -> None:
    """Writes a base model with its tokenizer and `world.json`.

    Args:
        directory: the directory to write.
        language: the language of the tokenizer.
        spec: the model.
        params: its parameters.
        report: the content of `world.json`.
    """
    ids = packing.ids_of_words(language)
    generation = {"eos_token_id": ids[tokenizer.EOS], "pad_token_id": ids[tokenizer.PAD]}
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as tokenizer_dir:
        tokenizer.write_tokenizer(tokenizer_dir, language)
        hf.save(
            directory, spec, params, tokenizer_dir, dtype="float32", generation_config=generation
        )
    if distributed.is_main_process():
        (directory / "world.json").write_text(json.dumps(report, indent=2) + "\n")


def _mean(figures: dict[str, dict[str, Any]], key: str) -> float:
    return sum(family[key] for family in figures.values()) / len(figures)
