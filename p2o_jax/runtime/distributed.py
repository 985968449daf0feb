"""Devices and processes of a run, and values that all processes agree on.

Every process runs the same Python code in the same order on the same data. Anything that could
differ between hosts (clocks, files, replies of a service) goes through `broadcast_from_main`.
"""

import json
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import clusters  # private: needed to know the group before JAX joins it
from jax._src.clusters import cloud_tpu_cluster
from jax.experimental import multihost_utils

from p2o_jax.config import ConfigError, MeshConfig
from p2o_jax.runtime import liveness

T = TypeVar("T")
MIN_COMPILE_SECONDS = 0.1  # programs that compile faster are not kept in the compilation cache
GPU_MEMORY = (
    ".95"  # fraction that JAX allocates, unless the environment sets it; its default is .75
)


def split_cpu(num_devices: int) -> None:
    """Splits the CPU into `num_devices` JAX devices. Must be called before JAX is first used.

    This makes any mesh testable on one machine, but is no faster than one device.

    XLA's thread pool must have more threads than can wait in a collective, or they wait forever.
    With one device and one process nothing waits, and more threads than cores would be slower.
    """
    if num_devices > 1 or in_a_group():
        os.environ.setdefault("NPROC", str(max(4 * num_devices, os.cpu_count() or 1)))
    if jax.config.values["jax_num_cpu_devices"] != num_devices:
        jax.config.update("jax_num_cpu_devices", num_devices)


def start(mesh: MeshConfig, compile_cache: str) -> int:
    """Prepares JAX, and returns the number of devices of all processes.

    Must be called before JAX is first used. Splits the CPU, sets the fraction of GPU memory to
    allocate, joins the other processes of the run if there are any, and sets the compilation cache
    (JAX_COMPILATION_CACHE_DIR, if it is set, takes precedence over `compile_cache`).

    Raises:
        liveness.Missing: not all processes started in time.
    """
    if mesh.cpu_devices:
        split_cpu(mesh.cpu_devices)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", GPU_MEMORY)
    if in_a_group() and not jax.distributed.is_initialized():
        limits = liveness.Limits(mesh.start_s, mesh.silent_s, mesh.absent_s)
        address, number, index = place_in_group(limits.start)
        liveness.join(address, index, number, limits)
        # JAX's service would handle SIGTERM; preemption.Preemption does, and uses `any_process`.
        jax.config.update("jax_enable_preemption_service", False)
        later = int(limits.silent + 30)  # so that `liveness`, which names the host, reports first
        jax.distributed.initialize(
            address, number, index, initialization_timeout=later, heartbeat_timeout_seconds=later
        )
    if compile_cache and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update(
            "jax_compilation_cache_dir",
            compile_cache if "://" in compile_cache else os.path.abspath(compile_cache),
        )
        # JAX's default of 1 s would leave most programs of a small model to be compiled again
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return jax.device_count()


def place_in_group(timeout_s: float) -> tuple[str, int, int]:
    """Returns process 0's HOST:PORT, the number of processes, and the index of this one.

    Reads the JAX_* environment variables, and asks the cluster for those that are not set.

    Raises:
        ConfigError: a value is neither set nor known to the cluster.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, number, index = map(os.environ.get, names)
    place = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        address,
        int(number) if number else None,
        int(index) if index else None,
        None,
        None,
        int(timeout_s),
    )[:3]
    if missing := [name for name, value in zip(names, place, strict=True) if value is None]:
        raise ConfigError(
            f"this is one of several processes, but {', '.join(missing)} is not set, and no"
            " cluster provides it"
        )
    return place  # type: ignore[return-value]


def in_a_group() -> bool:
    """Whether this is one of several processes, each started with the same command.

    Detects JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and JAX_PROCESS_ID), Slurm, Open MPI and
    hosts of a TPU pod.
    """
    env = os.environ
    hosts = env.get("TPU_WORKER_HOSTNAMES", "").split(",")  # libtpu may put a message there
    several = any(
        int(env.get(name, "1")) > 1
        for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    )
    several |= "JAX_COORDINATOR_ADDRESS" in env or (
        len(hosts) > 1 and all(re.fullmatch(r"[\w.:-]+", h) for h in hosts)
    )
    return several or _tpu_hosts() > 1


def _tpu_hosts() -> int:
    """The number of hosts of this TPU slice, from Google's metadata server; 1 without a TPU."""
    pod = cloud_tpu_cluster.GceTpuCluster
    return pod.get_process_count() if pod.is_env_present() else 1


def is_main_process() -> bool:
    """Whether this is process 0."""
    return jax.process_index() == 0


def broadcast_from_main(decide: Callable[[], T]) -> T:
    """Calls `decide` on process 0 and returns its result on every process.

    The result must be JSON.

    Raises:
        RuntimeError: `decide` raised an exception, and there are several processes.
    """
    if jax.process_count() == 1:
        return decide()
    liveness.met()
    text = ""
    if is_main_process():
        try:
            text = json.dumps({"value": decide()})
        except BaseException as e:  # any exception must reach all processes
            text = json.dumps({"error": f"{type(e).__name__}: {e}"})
    payload = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int64(payload.size)))
    buffer = np.zeros(size, np.uint8)
    buffer[: payload.size if is_main_process() else 0] = payload if is_main_process() else 0
    result: dict[str, Any] = json.loads(
        np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()
    )
    if "error" in result:
        raise RuntimeError(f"process 0 failed: {result['error']}")
    return result["value"]


def all_processes(holds: bool) -> bool:
    """Whether `holds` is true on every process."""
    if jax.process_count() == 1:
        return holds
    liveness.met()
    return bool(np.all(multihost_utils.process_allgather(np.bool_(holds))))


def any_process(holds: bool) -> bool:
    """Whether `holds` is true on at least one process."""
    return not all_processes(not holds)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array on every process; for small results such as tokens, log-probs and scalars."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    liveness.met()
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def put(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """A global array from a host array that is the same on every process.

    Each process copies only the slices of its own devices.
    """
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


class CompileCounter:
    """Counts backend compilations of this process, and their seconds, from its creation on."""

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._on_event)

    def _on_event(self, event: str, duration_secs: float, **kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1
            self.seconds += duration_secs
