"""The device's own speed: copies in its memory, and products of bfloat16 matrices."""

from collections.abc import Callable
from typing import Any

from benchmarks.accelerator import bounds, device
from benchmarks.accelerator.bounds import Rates

FULL = {"copied_bytes": 2**30, "sizes": (4096, 8192), "calls": 20}
TINY = {"copied_bytes": 2**22, "sizes": (128,), "calls": 2}


def measure(mesh: Any, rates: Rates, tiny: bool, put: Callable[..., None]) -> None:
    """Puts `copy_gb_per_s` (10^9 bytes read and written), `matmul_tflops` of the fastest size, and
    both as shares of the data sheet.

    Args:
        mesh: one device.
        rates: not used; this part measures them.
        tiny: small sizes, for a CPU.
        put: receives figures.
    """
    scale = TINY if tiny else FULL
    sheet = bounds.data_sheet(mesh.devices.flat[0].device_kind)
    copied = copy_rate(scale["copied_bytes"], scale["calls"])
    put(copy_gb_per_s=bounds.rounded(copied / 1e9))
    put(copy_of_peak=bounds.share(copied, sheet.bytes_per_s))
    best = max(matmul_rate(size, scale["calls"]) for size in scale["sizes"])
    put(matmul_tflops=bounds.rounded(best / 1e12), matmul_of_peak=bounds.share(best, sheet.flops))


def copy_rate(num_bytes: int, calls: int) -> float:
    """Returns bytes per second, read and written, of adding 1 to an array of this many bytes."""
    import jax
    import jax.numpy as jnp

    held = [jnp.zeros(num_bytes // 4, jnp.float32)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def run() -> jax.Array:
        held[0] = add(held[0])
        return held[0]

    return 2 * num_bytes / device.seconds_of(run, calls)


def matmul_rate(size: int, calls: int) -> float:
    """Returns operations per second of the product of two square matrices in bfloat16."""
    import jax
    import jax.numpy as jnp

    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / device.seconds_of(lambda: product(a, b), calls)
