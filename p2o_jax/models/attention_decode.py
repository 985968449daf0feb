"""One decode step's attention to a cache whose rows are filled to different lengths: a function per kind of device, one signature.

`for_mesh` chooses by the devices of the mesh: kernels that read each row up to its length on GPU and TPU, `windowed` on CPU.
`attention.over_cache` is the reference that all of them equal.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from p2o_jax.models import attention, attention_ragged
from p2o_jax.models.attention import Cache, Partial


class Kind(NamedTuple):
    """How a kind of device holds, writes and reads its caches: signatures as of `attention.append` and `attention.over_cache`."""

    cache: type[Cache]
    append: Callable[[Cache, Cache, jax.Array], Cache]
    attend: Callable[[jax.Array, Cache, jax.Array, jax.Array | None], Partial]
    copies_prompts: bool  # slots hold a copy of their prompt's cache: to read another row is to copy it, at every step


TIERS = 4
WINDOWS = 5  # of a tier: the whole cache, a half, … a sixteenth
WINDOWED_FROM = 512  # positions of the cache; below, reading all of them is as fast and compiles sooner


def for_mesh(mesh: Mesh, kv_heads: int, head_dim: int) -> Kind:
    """For caches of these sizes that live on this mesh, inside a shard_map over its data and fsdp axes.

    Sizes that the kernels do not take are read as on a CPU.
    """
    platform = mesh.devices.flat[0].platform
    if kv_heads % mesh.shape["tensor"]:
        return Kind(Cache, attention.append, windowed, True)
    if platform == "tpu" and head_dim % attention_ragged.LANES == 0:
        append = attention_ragged.append_over_tensor(attention_ragged.tpu_append, mesh)
        return Kind(Cache, append, attention_ragged.over_tensor(attention_ragged.tpu, mesh), False)
    if platform in ("gpu", "cuda") and head_dim in (16, 32, 64, 128, 256):
        return Kind(Cache, attention.append, attention_ragged.over_tensor(attention_ragged.gpu, mesh), False)
    return Kind(attention.Transposed if platform == "cpu" else Cache, attention.append, windowed, True)


def windowed(q_BHC: jax.Array, cache: Cache, length_B: jax.Array, row_B: jax.Array | None = None) -> Partial:
    """`attention.over_cache` by tiers of rows of similar length, each reading the shortest of a few windows that holds its longest.

    Rows are sorted by length at every call; nothing is moved or kept. With one old row among young ones, a single window would
    make all of them read as far as the old one does.
    """
    B, S = q_BHC.shape[0], attention.num_positions(cache)
    tiers = min(TIERS, B // 4)
    if S < WINDOWED_FROM or tiers < 2:
        return attention.over_cache(q_BHC, cache, length_B, row_B)
    windows = [S >> i for i in reversed(range(WINDOWS))]
    order = jnp.argsort(-length_B)
    rows_of = order if row_B is None else row_B[order]

    def tier(mine: slice) -> Partial:
        q, length, rows = q_BHC[order[mine]], length_B[order[mine]], rows_of[mine]

        def within(window: int) -> Callable[[], Partial]:
            def cut(axis: int, x: jax.Array) -> jax.Array:
                return x[(rows, *[slice(None)] * (axis - 1), slice(window))]

            return lambda: attention.over_cache(q, attention.by_position(cut, cache), length)

        return lax.switch(jnp.searchsorted(jnp.array(windows), length[0]), [within(w) for w in windows])

    bounds = [B * t // tiers for t in range(tiers + 1)]
    parts = [tier(slice(first, last)) for first, last in zip(bounds, bounds[1:], strict=False)]
    back = jnp.argsort(order)
    return jax.tree.map(lambda *tiers: jnp.concatenate(tiers)[back], *parts)
