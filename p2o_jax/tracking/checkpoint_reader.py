"""What can be read of a run's checkpoints, and whether a step is damaged.

Only a step whose files have changed is damaged (`file_digests`). An exception while reading says
nothing about the files: it is tried again where that may help, and ends the command otherwise.
"""

import errno
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax import lax

from p2o_jax import config
from p2o_jax.runtime import distributed, file_digests
from p2o_jax.types import digest

RETRY_SECONDS = (1.0, 5.0)  # before the second and the third attempt, where the store failed
_TRANSIENT = re.compile(
    r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|timed? ?out|\b(?:408|429|5\d\d)\b", re.I
)
_DTYPE_KEYS = "config.model.param_dtype and config.optim.mu_dtype"
_SHAPE_KEYS = "config.model.path, config.lora, config.optim and the version of p2o_jax"

T = TypeVar("T")


class Damaged(Exception):
    """A step's files are not what was written."""


def damage_of(path: epath.Path) -> str:
    """What is wrong with the files of a step; empty if every process finds its share as written.

    Raises:
        ConfigError: the store failed, which says nothing about the files.
    """

    def check() -> str:
        try:
            host_state(path)
        except Damaged as e:
            return str(e)
        return file_digests.damage(path, jax.process_index(), jax.process_count())

    damage = attempt(path, check)
    return (
        ""
        if distributed.all_processes(not damage)
        else damage or "another process found it damaged"
    )


def host_state(path: epath.Path) -> dict[str, Any]:
    """The host state of a step.

    Raises:
        Damaged: it is not what was saved.
        OSError: the store failed.
    """
    try:
        values = json.loads((path / "host" / "metadata").read_text())
        rest = {k: v for k, v in values.items() if k != "digest"}
        same = values.get("digest") == digest(json.dumps(rest, sort_keys=True))
    except (
        FileNotFoundError,
        NotADirectoryError,
        IsADirectoryError,
        ValueError,
        AttributeError,
    ) as e:
        raise Damaged(f"host/metadata cannot be read ({one_line(e)})") from e
    if not same:
        raise Damaged("host/metadata is not the host state that was saved")
    return rest


def attempt(path: epath.Path, read: Callable[[], T]) -> T:
    """What `read` returns, once it has worked on every process; tried again where that may help.

    Raises:
        ConfigError: some process could not read; nothing was moved.
    """
    for seconds in (*RETRY_SECONDS, None):
        value, error = None, None
        try:
            value = read()
        except Exception as e:  # orbax and its stores raise anything, bare exceptions included
            error = e
        if distributed.all_processes(error is None):
            return value  # type: ignore[return-value]
        if seconds is None or not distributed.all_processes(error is None or _is_transient(error)):
            reason = (
                f"{type(error).__name__}: {one_line(error)}" if error else "another process failed"
            )
            raise config.ConfigError(
                f"{path}: could not be read: {reason}. That is no damage to its files, and nothing"
                " was changed; the same command tries again"
            ) from error
        time.sleep(seconds)
    raise AssertionError("the last attempt returns or raises")


def _is_transient(error: BaseException) -> bool:
    """Whether trying again may help: the network's failures, and the disk's that pass."""
    passing = (errno.EIO, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.EBUSY)
    if isinstance(error, TimeoutError | ConnectionError) or (
        isinstance(error, OSError) and error.errno in passing
    ):
        return True
    return bool(_TRANSIENT.search(str(error)))


def one_line(e: BaseException) -> str:
    """An exception's message in one line of at most 605 characters, its middle left out."""
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"


def ticks_in(where: epath.Path) -> list[int]:
    """The ticks that the folder has checkpoints of, sorted."""
    return sorted(ocp.utils.checkpoint_steps(where)) if where.is_dir() else []


def policy_steps(where: epath.Path) -> tuple[dict[int, int], set[int]]:
    """({tick: policy step}, ticks whose host state cannot be read) of the steps in the folder."""
    steps, unreadable = {}, set()
    for tick in ticks_in(where):
        try:
            steps[tick] = host_state(where / str(tick))["state"]["step"]
        except (Damaged, OSError, KeyError, TypeError):
            unreadable.add(tick)
    return steps, unreadable


def policies(where: epath.Path) -> dict[int, int]:
    """The tick of the newest checkpoint of every policy step that has one.

    Only reads, since the run may be going on.

    Raises:
        ConfigError: the newest one's policy step cannot be read.
    """
    steps, unreadable = policy_steps(where)
    if unreadable and max(unreadable) > max(steps, default=-1):
        raise config.ConfigError(
            f"{where / str(max(unreadable))}: the newest checkpoint is damaged; move it away to use"
            " the one before it"
        )
    return {step: tick for tick, step in sorted(steps.items())}


def read_policy(where: epath.Path, tick: int, abstract_params: Any) -> Any:
    """The params of a checkpoint, laid out as `abstract_params`, without its optimizer state.

    `abstract_params` have no rows that pad the vocabulary; stored ones are cut off.

    Raises:
        ConfigError: the checkpoint is damaged or of another model, or the store failed.
    """
    path = where / str(tick)
    if damage := damage_of(path):
        raise config.ConfigError(f"{path} is damaged: {damage}; --step picks another checkpoint")
    host = host_state(path)
    prefix = ".params"
    stored, sums = (
        {n.removeprefix(prefix): v for n, v in host[part].items() if n.startswith(prefix)}
        for part in ("arrays", "bits")
    )
    if problems := differing_arrays(stored, describe(abstract_params)):
        raise config.ConfigError(*(f"{path}: {line}" for line in problems))
    handler, item = ocp.PyTreeCheckpointHandler(), {"params": abstract_params}
    restore_args = jax.tree.map(
        lambda x: replace(x, strict=False), ocp.checkpoint_utils.construct_restore_args(item)
    )
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    params = attempt(path, lambda: ocp.Checkpointer(handler).restore(path / "learner", args=args))[
        "params"
    ]
    check_bits(path, sums, params)
    return params


def describe(tree: Any) -> dict[str, str]:
    """dtype and shape of every array, by its path in the tree: "float32[64, 32]"."""
    return {
        jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)}"
        for path, x in jax.tree.leaves_with_path(tree)
    }


def differing_arrays(stored: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """A line for each array in which a stored state and the one of this run differ."""
    lines = []
    for name in sorted({*stored, *wanted}):
        there, here = stored.get(name, "missing"), wanted.get(name, "not there")
        if there != here:
            same_shape = there.partition("[")[2] == here.partition("[")[2] != ""
            keys = _DTYPE_KEYS if same_shape else _SHAPE_KEYS
            lines.append(
                f"array {name} is {there} in the checkpoint and {here} in this run; compare {keys}"
            )
    return lines


def bit_sums(tree: Any) -> dict[str, int]:
    """The sum, modulo 2^32, of the bits of every array, taken as whole numbers: the same however
    the array is split over devices.
    """
    sums = _bit_sums(jax.tree.leaves(tree))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]
    return {name: int(distributed.to_host(x)) for name, x in zip(names, sums, strict=True)}


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    words = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
    return [
        jnp.sum(
            lax.bitcast_convert_type(x, words[x.dtype.itemsize]).astype(jnp.uint32),
            dtype=jnp.uint32,
        )
        for x in leaves
    ]


def check_bits(path: epath.Path, sums: Mapping[str, int], tree: Any) -> None:
    """Raises a ConfigError that names the arrays of the tree whose bits are not the saved ones."""
    wrong = [name for name, value in bit_sums(tree).items() if sums.get(name) != value]
    if wrong:
        raise config.ConfigError(
            f"{path}: its files are as they were written, but the restored bits of"
            f" {', '.join(wrong[:5])} are not those that were saved; nothing was changed"
        )
