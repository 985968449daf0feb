"""Scores given tokens: log p of each one after those before it, as training computes it."""

import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from p2o_jax.config import Config, ConfigError
from p2o_jax.models import sharding, transformer
from p2o_jax.models.spec import ModelSpec
from p2o_jax.offline import settings
from p2o_jax.runtime import distributed, files
from p2o_jax.runtime.console import Reporter
from p2o_jax.startup import limits
from p2o_jax.startup.model import Network, open_network

MAX_ROWS = 8  # scored at a time, per shard of the mesh's data x fsdp
SCORES_BYTES = 2**30  # of attention scores, per shard, for the rows scored at a time


class ScoreOptions(NamedTuple):
    """Which tokens are scored by which model, and where the scores are written."""

    model: str
    tokens: Path
    out: Path
    overrides: settings.Overrides = ()


class Tokens(NamedTuple):
    """Token ids (int32) and which of them are real (bool), [B, T]."""

    id_BT: np.ndarray
    mask_BT: np.ndarray


def score(options: ScoreOptions) -> None:
    """Scores a file of tokens.

    Raises:
        ConfigError: anything wrong with the files, config or model.
    """
    tokens, out = read_tokens(options.tokens), options.out
    problems = files.conflicts("--out", out)
    problems += [] if out.parent.is_dir() else [f"--out={out}: no such directory: {out.parent}"]
    if problems:
        raise ConfigError(*problems)
    cfg = settings.command_config(Config(), {"model.path": options.model}, options.overrides)
    reporter = Reporter(enabled=distributed.is_main_process())
    network = open_network(
        cfg,
        reporter,
        lambda spec: token_problems(cfg, spec, tokens, options.tokens),
        int(tokens.mask_BT.sum(axis=1).max()),
    )
    rows = cfg.optim.micro_rows
    if "optim.micro_rows" not in dict(options.overrides):
        scores = 4 * network.spec.heads * tokens.id_BT.shape[1] ** 2
        rows = max(min(MAX_ROWS, SCORES_BYTES // scores), 1) * sharding.num_shards(network.mesh)
    logp_BT = token_logprobs(cfg, network, tokens, rows, reporter)
    if distributed.is_main_process():
        try:
            with files.replacing(out) as f:
                np.savez(f, token_logprobs=logp_BT)
        except OSError as e:
            raise ConfigError(f"--out={out}: {e.strerror}") from e


def token_logprobs(
    cfg: Config, network: Network, tokens: Tokens, rows: int, reporter: Reporter
) -> np.ndarray:
    """The log-probs [B, T].

    Args:
        cfg: with the dtype of the params, and the size of a chunk of logits.
        network: opened, not loaded.
        tokens: what is scored.
        rows: scored at a time, by one compiled program.
        reporter: shows progress and speed.
    """
    split = sharding.batch_sharding(network.mesh)
    params = network.load(cfg.model.param_dtype)

    def logps(params: Any, token_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
        position_BT, segment_BT = transformer.segments(mask_BT)
        return transformer.token_logps(
            network.spec,
            params,
            token_BT,
            position_BT,
            segment_BT,
            dtype=network.dtype,
            chunk=cfg.model.logit_chunk,
            mesh=network.mesh,
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
            logp_BT = program(params, *(distributed.put(x, split) for x in padded))
            scored[first : first + count] = distributed.to_host(logp_BT)[:count]
            advance(count)
    seconds, num_tokens = time.monotonic() - start, int(tokens.mask_BT.sum())
    reporter.line(
        f"{B} rows, {num_tokens:,} tokens in {seconds:.1f} s, {compiles.seconds:.1f} s of them"
        f" compiling: {num_tokens / max(seconds - compiles.seconds, 1e-9):,.0f} tokens/s"
    )
    return scored


def token_problems(cfg: Config, spec: ModelSpec, tokens: Tokens, path: Path) -> list[str]:
    """A line if the model does not have all token ids, and one if a row is longer than it takes."""
    problems = []
    least, most = int(tokens.id_BT.min()), int(tokens.id_BT.max())
    if least < 0 or most >= spec.vocab:
        problems.append(
            f"{path}: input_ids reach from {least} to {most}; the model's vocabulary is"
            f" 0..{spec.vocab - 1}"
        )
    longest = int(tokens.mask_BT.sum(axis=1).max())
    if why := limits.beyond_context(cfg, spec, longest):
        problems.append(f"{path}: a row of {longest:,} tokens: {why}")
    return problems


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
    problems = []
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        problems.append(
            f"{path}: input_ids {list(ids.shape)} {ids.dtype}: expected integers [B, T]"
        )
    if mask.shape != ids.shape or mask.dtype.kind not in "iub" or not np.isin(mask, (0, 1)).all():
        problems.append(
            f"{path}: attention_mask {list(mask.shape)} {mask.dtype}: expected zeros and ones of"
            " the shape of input_ids"
        )
    if problems:
        raise ConfigError(*problems)
    mask = mask.astype(bool)
    starts = (np.diff(mask.astype(np.int8), axis=1, prepend=0) == 1).sum(axis=1)
    if (starts > 1).any():
        row = int(starts.argmax())
        raise ConfigError(
            f"{path}: attention_mask, row {row}: the ones must stand together, with padding on the"
            " left or on the right"
        )
    return Tokens(np.where(mask, ids, 0).astype(np.int32), mask)
