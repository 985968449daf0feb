"""The device that a part measures, its name and versions, and the time of programs on it."""

import functools
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from p2o_jax.models.spec import ModelSpec, Rope

# Beside those of `startup.versions`: what brings the device, where it is installed.
DRIVERS = (
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "nvidia-cublas-cu12",
    "nvidia-cublas",
)
COMPILE_CACHE = "runs/cache"  # that of training runs, so that a second start compiles nothing
TINY = ModelSpec(
    family="qwen3",
    vocab=512,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp=128,
    rope=Rope(theta=1e6),
    qk_norm=True,
    tied=True,
)


def start() -> Any:
    """Prepares JAX as a training run does, and returns the mesh of one device."""
    from p2o_jax.config import MeshConfig
    from p2o_jax.runtime import distributed

    distributed.start(MeshConfig(), COMPILE_CACHE)
    import jax

    from p2o_jax.models import sharding

    return sharding.make_mesh((1, 1, 1), jax.devices()[:1])


def described(mesh: Any) -> dict[str, Any]:
    """Returns the machine, the memory of the device in GiB, and versions."""
    from benchmarks import report
    from p2o_jax.rollout.memory import GIB, device_bytes
    from p2o_jax.startup import versions

    card = {
        "device": mesh.devices.flat[0].device_kind,
        "device_gib": round(device_bytes(mesh) / GIB, 1),
        **report.machine(),
    }
    return {"card": card, "versions": versions.installed() | drivers()}


def drivers() -> dict[str, str]:
    """Returns the versions of those of DRIVERS that are installed."""
    installed = {}
    for name in DRIVERS:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def gpu_driver() -> str:
    """Returns what the driver of NVIDIA's cards reports of them; empty if there is none. JAX is
    not used, so that the device stays free.
    """
    fields = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    if program := shutil.which("nvidia-smi"):
        query = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            return "; ".join(done.stdout.strip().splitlines())
        except (subprocess.SubprocessError, OSError):
            pass
    version = Path("/proc/driver/nvidia/version")
    return version.read_text(encoding="utf-8").splitlines()[0] if version.exists() else ""


def seconds_of(run: Callable[[], Any], calls: int, repeats: int = 5) -> float:
    """Returns the seconds of a call: the median over repeats of several calls in a row.

    The calls of a repeat are queued on the device, so that the host's time is hidden.

    Args:
        run: starts the program and returns its result; called once before, to compile.
        calls: calls of a repeat.
        repeats: measurements.
    """
    import jax

    jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        results = None
        for _ in range(calls):
            results = run()
        jax.block_until_ready(results)
        seconds.append((time.perf_counter() - begin) / calls)
    return median(seconds)


def random_params(spec: ModelSpec, mesh: Any, dtype: str) -> Any:
    """Returns params with random weights, placed as the learner has them."""
    import jax

    from p2o_jax.models import sharding, transformer

    placed = sharding.param_shardings(spec, mesh, sharding.LEARNER)
    draw = functools.partial(transformer.init, spec, dtype=dtype)
    return jax.jit(draw, out_shardings=placed)(jax.random.key(0))
