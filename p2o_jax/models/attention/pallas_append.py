"""Writing of one position per row to a cache on TPU: `reference.append` as a Pallas kernel."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int

from p2o_jax.models.attention.pallas_decode import LANES, in_hbm
from p2o_jax.models.attention.reference import Cache, append

TPU_TILE = {4: 16, 2: 16, 1: 32}  # positions that are written together, by element size in bytes


def tpu_append(
    cache: Cache, new: Cache, position_B: Int[Array, "B"], interpret: bool = False
) -> Cache:
    """`reference.append` in the layout that `pallas_decode.tpu` reads. For a scatter the compiler
    picks another layout and copies the whole cache each time.
    """
    if cache.k_AKSC.shape[3] % LANES:
        return append(cache, new, position_B)
    B, K = position_B.shape[0], cache.k_AKSC.shape[1]
    tensors = [in_hbm(x, interpret) for x in cache if x is not None]
    placed = [y.reshape(B, K, 1, -1) for y in new if y is not None]

    def spec(x: jax.Array) -> pl.BlockSpec:
        """The tile that holds the position. Positions are the next-to-last axis of keys and values,
        the last of scales.
        """
        if x.ndim == 4:
            tile = TPU_TILE[x.dtype.itemsize]
            return pl.BlockSpec((None, K, tile, x.shape[3]), lambda b, at: (b, 0, at[b] // tile, 0))
        return pl.BlockSpec((None, K, LANES), lambda b, at: (b, 0, at[b] // LANES))

    written = pl.pallas_call(
        _append_kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(B,),
            in_specs=[spec(x) for x in tensors]
            + [pl.BlockSpec((None, K, 1, y.shape[3]), lambda b, at: (b, 0, 0, 0)) for y in placed],
            out_specs=[spec(x) for x in tensors],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in tensors],
        input_output_aliases={1 + i: i for i in range(len(tensors))},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
        name="cache_append",
    )(position_B, *tensors, *placed)
    return Cache(*written)


def _append_kernel(position_ref: Any, *refs: Any) -> None:
    position = position_ref[pl.program_id(0)]
    third = len(refs) // 3
    for old_ref, new_ref, out_ref in zip(
        refs[:third], refs[third : 2 * third], refs[2 * third :], strict=True
    ):
        here = lax.broadcasted_iota(jnp.int32, out_ref.shape, 1) == position % out_ref.shape[1]
        new = new_ref[...] if len(out_ref.shape) == 3 else new_ref[...][:, :, 0]
        out_ref[...] = jnp.where(here, new, old_ref[...])
