"""The decode kernels for GPU and TPU against the dense reference, in Pallas' interpreter and
compiled by the TPU compiler where it is installed.
"""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from p2o_jax.models import sharding
from p2o_jax.models.attention import decoding, pallas_append, pallas_decode, reference

BLOCK = 16  # positions, so that a few make several blocks
KERNELS = [pallas_decode.gpu, pallas_decode.tpu]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pallas_decode, "TPU_BLOCK", BLOCK)
    monkeypatch.setattr(pallas_decode, "GPU_BLOCK", dict.fromkeys((1, 2, 4), BLOCK))


over_cache = jax.jit(reference.over_cache, static_argnums=4)


@functools.partial(jax.jit, static_argnums=range(8))
def inputs(B, H, K, S, C=128, dtype=jnp.float32, rows=None, quantized=False):
    keys = jax.random.split(jax.random.key(3), 5)
    q = jax.random.normal(keys[0], (B, H, C), dtype)
    shape = (rows or B, K, S, C)
    if not quantized:
        return q, reference.Cache(*(jax.random.normal(key, shape, dtype) for key in keys[1:3]))
    vectors = (jax.random.randint(key, shape, -127, 128, jnp.int8) for key in keys[1:3])
    return q, reference.Cache(
        *vectors,
        *(jax.random.uniform(key, shape[:3], minval=0.001, maxval=0.02) for key in keys[3:]),
    )


def assert_same(kernel, q, cache, length, row=None, tolerance=1e-5, soft_cap=0.0):
    """Compares outputs within the tolerance, m and l relatively; exactly where there is nothing to
    attend to.
    """
    length, row = jnp.array(length), row if row is None else jnp.array(row)
    got, want = (
        jax.jit(functools.partial(kernel, soft_cap=soft_cap, interpret=True))(
            q, cache, length, row
        ),
        over_cache(q, cache, length, row, soft_cap),
    )
    assert [x.dtype for x in got] == [jnp.float32] * 3
    np.testing.assert_allclose(got.o_BHC, want.o_BHC, rtol=0, atol=tolerance)
    np.testing.assert_allclose(got.m_BH, want.m_BH, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.l_BH, want.l_BH, rtol=1e-5)
    empty = np.asarray(length) == 0
    assert (
        (got.o_BHC[empty] == 0).all()
        and (got.l_BH[empty] == 0).all()
        and (got.m_BH[empty] == reference.NEG).all()
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("H", "K", "S"), [(4, 4, 40), (8, 2, 32), (7, 1, 40), (64, 1, 32), (130, 1, 32)]
)
def test_equals_the_dense_reference(kernel, H, K, S):
    """Ragged lengths with block edges; groups of 1, 4, 7, 64 and 130 query heads; rows of whole and
    partial blocks.
    """
    q, cache = inputs(7, H, K, S)
    assert_same(kernel, q, cache, [0, 1, S, BLOCK, BLOCK + 1, BLOCK - 1, 2])


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_may_be_shared_and_out_of_order(kernel):
    q, cache = inputs(6, 4, 2, 40, rows=3)
    assert_same(kernel, q, cache, [5, 40, 0, 30, 0, 17], [2, 0, 1, 2, 2, 0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_differs_by_the_rounding_of_weights_only(kernel):
    """Weights are rounded to 8 bits relative to each block's maximum: a mean of values changes by
    less than 2^-8 of the largest.
    """
    q, cache = inputs(4, 8, 2, 40, dtype=jnp.bfloat16)
    assert_same(
        kernel, q, cache, [40, 23, 1, 0], tolerance=2**-8 * float(jnp.abs(cache.v_AKSC).max())
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("K", "soft_cap"), [(1, 0.7), (2, 0.0)])
def test_int8_with_scales(kernel, K, soft_cap):
    q, cache = inputs(4, 4, K, 40, quantized=True)
    assert_same(kernel, q, cache, [40, 23, 16, 0], [3, 1, 0, 2], soft_cap=soft_cap)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_at_all_to_attend_to(kernel):
    assert_same(kernel, *inputs(2, 4, 2, 32), [0, 0])


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_lies_behind_the_length_does_not_matter(kernel):
    q, cache = inputs(3, 4, 2, 40)
    length = jnp.array([9, 16, 33])
    changed = jax.tree.map(
        lambda x: jnp.where(
            jnp.arange(40)[None, None, :, None] < length[:, None, None, None], x, 1e9
        ),
        cache,
    )
    run = jax.jit(functools.partial(kernel, interpret=True))
    for a, b in zip(run(q, cache, length), run(q, changed, length), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_head_sizes_go_the_dense_way():
    q, cache = inputs(3, 4, 2, 20, C=24)
    for kernel in KERNELS:
        assert_same(kernel, q, cache, [0, 20, 7])


def test_gpu_merges_parts_of_a_row(monkeypatch):
    q, cache = inputs(2, 4, 2, 70)
    for programs in (1, 8, 1000):  # no split, two parts, a block each
        monkeypatch.setattr(pallas_decode, "GPU_PROGRAMS", programs)
        assert_same(
            lambda *args, **options: pallas_decode.gpu(*args, **options), q, cache, [70, 10]
        )


def test_gpu_refuses_a_cache_it_cannot_address():
    shape = (
        jax.ShapeDtypeStruct((1, 1, 2**25 + 128, 64), jnp.int8),
        jax.ShapeDtypeStruct((1, 1, 2**25 + 128), jnp.float32),
    )
    cache = reference.Cache(shape[0], shape[0], shape[1], shape[1])
    with pytest.raises(ValueError, match="2 to 4 GiB"):
        jax.eval_shape(
            pallas_decode.gpu,
            jax.ShapeDtypeStruct((1, 1, 64), jnp.bfloat16),
            cache,
            jax.ShapeDtypeStruct((1,), jnp.int32),
        )


def test_the_list_of_work_holds_only_blocks_that_hold_something():
    (slot, number), count = pallas_decode._work(jnp.array([0, 3, 8, 0, 1]), 4, 2)
    assert int(count) == 4
    assert slot[:4].tolist() == [1, 2, 2, 4] and number[:4].tolist() == [0, 0, 1, 0]
    assert int(pallas_decode._work(jnp.array([0, 0]), 4, 2)[1]) == 1


@pytest.mark.parametrize("quantized", [False, True])
def test_append_writes_one_position_of_each_row(quantized):
    _, cache = inputs(5, 4, 2, 40, quantized=quantized)
    _, other = inputs(5, 4, 2, 40, quantized=quantized)
    new = jax.tree.map(lambda x: -x[:, :, 7:8], other)
    position = jnp.array([0, 39, 15, 16, 33])
    want = reference.append(cache, new, position)
    for got, expected, before in zip(
        pallas_append.tpu_append(cache, new, position, interpret=True), want, cache, strict=True
    ):
        if before is not None:
            np.testing.assert_array_equal(got, expected)
            assert (got[1, :, 39] == -before[1, :, 7]).all() and (
                got[1, :, :39] == before[1, :, :39]
            ).all()


def under_shards(attend, mesh):
    """Wraps it as the sampler calls it: manual over data and fsdp, with tensor left to the
    compiler.
    """
    rows = PartitionSpec(sharding.BATCH_AXES)
    return jax.jit(
        jax.shard_map(
            attend,
            mesh=mesh,
            in_specs=rows,
            out_specs=rows,
            axis_names=set(sharding.BATCH_AXES),
            check_vma=False,
        )
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("K", [2, 1])
def test_heads_are_split_over_the_tensor_axis(kernel, K):
    mesh = sharding.make_mesh((1, 2, 2), jax.devices()[:4])
    q, cache = inputs(4, 4, K, 32)
    length, row = jnp.array([32, 1, 0, 17]), jnp.array([1, 0, 0, 1])  # rows are a shard's own
    attend = decoding.over_tensor(functools.partial(kernel, interpret=True), mesh)
    got = under_shards(attend, mesh)(q, cache, length, row)
    want = over_cache(q, cache, length, row + jnp.array([0, 0, 2, 2]))
    np.testing.assert_allclose(got.o_BHC, want.o_BHC, rtol=0, atol=1e-5)


def compile_steps(kernel, write, devices, tensor, dtype, cached):
    """Compiles a loop that writes and attends, as decoding does, for a mesh of these devices; 16
    rows, 8 key/value heads per shard.
    """
    shards = len(devices) // tensor
    mesh = sharding.make_mesh((1, shards, tensor), devices)

    def rows(shape, dtype, *axes):
        split = NamedSharding(mesh, PartitionSpec(sharding.BATCH_AXES, *axes))
        return jax.ShapeDtypeStruct((shape[0] * shards, *shape[1:]), dtype, sharding=split)

    def steps(q, cache, new, length, row):
        def step(i, state):
            q, cache = state
            cache = write(cache, new, length + i)
            return attend(q, cache, length + i + 1, row).o_BHC.astype(q.dtype), cache

        return jax.lax.fori_loop(0, 8, step, (q, cache))

    attend, write = (
        decoding.over_tensor(kernel, mesh),
        decoding.append_over_tensor(write, mesh),
    )
    q, vectors, numbers = (
        rows((16, 16, 128), dtype, "tensor"),
        rows((16, 8, 1120, 128), cached, "tensor"),
        rows((16,), jnp.int32),
    )
    vector, scales, scale = (
        rows((16, 8, 1, 128), cached, "tensor"),
        rows((16, 8, 1120), "float32", "tensor"),
        rows((16, 8, 1), "float32", "tensor"),
    )
    cache, new = reference.Cache(vectors, vectors), reference.Cache(vector, vector)
    if cached == "int8":
        cache, new = (
            reference.Cache(vectors, vectors, scales, scales),
            reference.Cache(vector, vector, scale, scale),
        )
    return (
        jax.jit(under_shards(steps, mesh), donate_argnums=1)
        .lower(q, cache, new, numbers, numbers)
        .compile()
    )


@pytest.mark.parametrize(("topology", "tensor"), [("v5e:2x4", 1), ("v5e:2x4", 2), ("v5p:2x2x2", 1)])
@pytest.mark.parametrize(
    ("dtype", "cached"), [("bfloat16", "bfloat16"), ("float32", "float32"), ("bfloat16", "int8")]
)
def test_compiles_for_tpus_that_are_not_there(topology, tensor, dtype, cached, monkeypatch):
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.undo()  # the real blocks
    monkeypatch.setitem(os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    compiled = compile_steps(
        pallas_decode.tpu, pallas_append.tpu_append, devices, tensor, dtype, cached
    )
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert "all-gather" not in text and "all-reduce" not in text
    assert not re.search(r"\w+\[16,\d,1120,128\]\S* copy", text), "the cache is copied"
    # the cache has 13 MiB a chip at least
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 2**20


H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 1 patch: 1 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@pytest.mark.parametrize(
    ("tensor", "dtype", "cached"),
    [(1, "bfloat16", "bfloat16"), (2, "bfloat16", "int8"), (1, "float32", "float32")],
)
def test_compiles_for_gpus_that_are_not_there(tensor, dtype, cached, monkeypatch):
    """To machine code of an H100, limited by its shared memory."""
    pytest.importorskip("jax_plugins.xla_cuda13")
    from jax.experimental import topologies

    monkeypatch.undo()
    devices = topologies.get_topology_desc(
        platform="cuda", target_config=H100, topology="1x1x8"
    ).devices
    compiled = compile_steps(pallas_decode.gpu, reference.append, devices, tensor, dtype, cached)
    text = compiled.as_text()
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == 1
    assert not re.search(r"\w+\[16,\d,1120,128\]\S* copy", text), "the cache is copied"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_runs_on_a_gpu(dtype, monkeypatch):
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU")
    monkeypatch.undo()
    args = jax.device_put(
        (
            *inputs(5, 16, 8, 700, dtype=dtype),
            jnp.array([0, 1, 700, 512, 129]),
            jnp.array([3, 0, 2, 1, 1]),
        ),
        device,
    )
    for got, want in zip(
        jax.jit(pallas_decode.gpu)(*args), reference.over_cache(*args), strict=True
    ):
        np.testing.assert_allclose(
            got, want, rtol=1e-3, atol=1e-5 if dtype == jnp.float32 else 2**-7
        )
