"""Scores: `python -m p2o_jax.score --model DIR --tokens FILE.npz --out OUT.npz`.

In: `input_ids` and `attention_mask` [B, T], each row one sequence, padded on the left or on the
    right. Out: `token_logprobs` [B, T],
float32: log p of each token given those before it, at temperature 1; 0 for the first token of a row
and for padding. This is the way to compare numbers with another engine: the model runs as training
runs it, in config.model.compute_dtype.
"""

import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from p2o_jax import config
from p2o_jax.config import Config, ConfigError, loading
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.main import command
from p2o_jax.runtime import files
from p2o_jax.runtime.console import Reporter

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from p2o_jax.models.spec import ModelSpec

COMMAND_LINE = CommandLine(
    "p2o_jax.score",
    __doc__,
    Flag("model", "Hugging Face directory", required=True, metavar="DIR"),
    Flag("tokens", "Token ids and mask to score", required=True, metavar="FILE.npz"),
    Flag("out", "Output file", required=True, metavar="OUT.npz"),
)
MAX_ROWS = 8  # scored at a time, per shard of the mesh's data x fsdp
SCORES_BYTES = 2**30  # of attention scores, per shard, for the rows scored at a time


class Tokens(NamedTuple):
    """Token ids (int32) and which of them are real (bool), [B, T]."""

    id_BT: np.ndarray
    mask_BT: np.ndarray


class Scorer(NamedTuple):
    """A model without its tokenizer, ready to score."""

    spec: "ModelSpec"
    mesh: "Mesh"
    params: Any
    dtype: Any
    logit_chunk: int


def run(argv: Sequence[str]) -> None:
    """Scores the command line's file.

    Raises:
        ConfigError: anything wrong with flags, file, config or model.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    tokens = read_tokens(Path(flags["tokens"]))
    out = Path(flags["out"])
    problems = files.conflicts("--out", out)
    problems += [] if out.parent.is_dir() else [f"--out={out}: no such directory: {out.parent}"]
    if problems:
        raise ConfigError(*problems)

    from p2o_jax.runtime import distributed

    reporter = Reporter(enabled=distributed.is_main_process())
    cfg, given = _config(flags["model"], overrides)
    distributed.start(cfg.mesh, compile_cache="")
    scorer = open_scorer(cfg, tokens, flags["tokens"])
    T, shards = tokens.id_BT.shape[1], scorer.mesh.shape["data"] * scorer.mesh.shape["fsdp"]
    fitting = max(min(MAX_ROWS, SCORES_BYTES // (4 * scorer.spec.heads * T**2)), 1) * shards
    logp_BT = score(scorer, tokens, cfg.optim.micro_rows if given else fitting, reporter)
    if distributed.is_main_process():
        partial = files.unused(out)
        try:
            with open(partial, "xb") as f:
                np.savez(f, token_logprobs=logp_BT)
            partial.replace(out)
        except OSError as e:
            partial.unlink(missing_ok=True)
            raise ConfigError(f"--out={out}: {e.strerror}") from e


def score(scorer: Scorer, tokens: Tokens, rows: int, reporter: Reporter) -> np.ndarray:
    """The log-probs [B, T], `rows` rows at a time by one compiled program."""
    import jax

    from p2o_jax.models import sharding, transformer
    from p2o_jax.runtime import distributed

    split = sharding.batch_sharding(scorer.mesh)

    def logps(params: Any, token_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        position_BT, segment_BT = transformer.segments(mask_BT)
        how = {"dtype": scorer.dtype, "chunk": scorer.logit_chunk, "mesh": scorer.mesh}
        return transformer.token_logps(
            scorer.spec, params, token_BT, position_BT, segment_BT, **how
        )[0]

    program = jax.jit(logps, out_shardings=split)
    B, T = tokens.id_BT.shape
    scored = np.zeros((B, T), np.float32)
    compiles, start = distributed.CompileCounter(), time.monotonic()
    with reporter.phase("score", B, "rows") as advance:
        for first in range(0, B, rows):
            part = Tokens(*(x[first : first + rows] for x in tokens))
            count = len(part.id_BT)
            padded = (np.pad(x, ((0, rows - count), (0, 0))) for x in part)
            logp_BT = program(scorer.params, *(distributed.put(x, split) for x in padded))
            scored[first : first + count] = distributed.to_host(logp_BT)[:count]
            advance(count)
    seconds, num_tokens = time.monotonic() - start, int(tokens.mask_BT.sum())
    reporter.line(
        f"{B} rows, {num_tokens:,} tokens in {seconds:.1f} s, {compiles.seconds:.1f} s of them"
        f" compiling: {num_tokens / max(seconds - compiles.seconds, 1e-9):,.0f} tokens/s"
    )
    return scored


def open_scorer(cfg: Config, tokens: Tokens, path: str) -> Scorer:
    """The model of `config.model.path` on the mesh of `config.mesh`.

    Raises:
        ConfigError: with a line for everything wrong with config, directory, mesh, and tokens that
            the model does not have.
    """
    import jax

    from p2o_jax.config import rules
    from p2o_jax.models import hf, hf_config, sharding
    from p2o_jax.startup import limits

    num_devices = len(jax.devices())
    found = rules.problems(cfg, num_devices)
    if found:
        raise ConfigError(*found)
    directory = hf_config.locate(cfg.model.path)
    spec = hf_config.read_spec(directory)
    mesh = sharding.make_mesh(config.mesh_shape(cfg.mesh, num_devices))
    found += sharding.problems(spec, mesh, sharding.LEARNER)
    least, most = int(tokens.id_BT.min()), int(tokens.id_BT.max())
    if least < 0 or most >= spec.vocab:
        found.append(
            f"{path}: input_ids reach from {least} to {most}; the model's vocabulary is"
            f" 0..{spec.vocab - 1}"
        )
    longest = int(tokens.mask_BT.sum(axis=1).max())
    if why := limits.beyond_context(cfg, spec, longest):
        found.append(f"{path}: a row of {longest:,} tokens: {why}")
    if found:
        raise ConfigError(*found)
    params = hf.load(
        directory,
        spec,
        sharding.param_shardings(spec, mesh, sharding.LEARNER),
        cfg.model.param_dtype,
    )
    auto = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
    dtype = auto if cfg.model.compute_dtype == "auto" else cfg.model.compute_dtype
    return Scorer(spec, mesh, params, dtype, cfg.model.logit_chunk)


def read_tokens(path: Path) -> Tokens:
    """The tokens of an .npz file; ids under padding are 0.

    Raises:
        ConfigError: with a line for everything wrong with the file.
    """
    try:
        with np.load(path) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("no .npz archive")
            missing = [name for name in ("input_ids", "attention_mask") if name not in file]
            if missing:
                raise ConfigError(
                    *(
                        f"{path}: no array {name} among {', '.join(file) or 'none'}"
                        for name in missing
                    )
                )
            ids, mask = file["input_ids"], file["attention_mask"]
    except OSError as e:
        raise ConfigError(f"--tokens={path}: {e.strerror or e}") from e
    except (ValueError, EOFError, zipfile.BadZipFile) as e:
        raise ConfigError(f"--tokens={path}: cannot be read as an .npz file ({e})") from e
    found = []
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        found.append(f"{path}: input_ids {list(ids.shape)} {ids.dtype}: expected integers [B, T]")
    if mask.shape != ids.shape or mask.dtype.kind not in "iub" or not np.isin(mask, (0, 1)).all():
        found.append(
            f"{path}: attention_mask {list(mask.shape)} {mask.dtype}: expected zeros and ones of"
            " the shape of input_ids"
        )
    if found:
        raise ConfigError(*found)
    mask = mask.astype(bool)
    starts = (np.diff(mask.astype(np.int8), axis=1, prepend=0) == 1).sum(axis=1)
    if (starts > 1).any():
        row = int(starts.argmax())
        raise ConfigError(
            f"{path}: attention_mask, row {row}: the ones must stand together, with padding on the"
            " left or on the right"
        )
    return Tokens(np.where(mask, ids, 0).astype(np.int32), mask)


def _config(model: str, overrides: Sequence[tuple[str, str]]) -> tuple[Config, bool]:
    """The config, and whether it says how many rows (optim.micro_rows) to score at a time."""
    import jax

    num_devices = str(len(jax.devices()))  # every mesh divides it
    defaults = {"model.path": model, "optim.micro_rows": num_devices, "rollout.slots": num_devices}
    values = loading.to_config_dict(Config())
    loading.override(values, [*defaults.items(), *overrides])
    return config.resolve(loading.from_config_dict(values)), "optim.micro_rows" in dict(overrides)


if __name__ == "__main__":
    command(run)
