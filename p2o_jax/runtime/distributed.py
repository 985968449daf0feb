"""The run's place in the world: devices and processes, named randomness, and what one process
decides for all.

Every process runs the same Python in the same order on the same bytes. What could differ between
hosts (clocks, files, replies of others) goes through `broadcast_from_main`.
"""

import json
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import clusters  # of JAX's own start; needed before it, to know who must come
from jax._src.clusters import cloud_tpu_cluster
from jax.experimental import multihost_utils

from p2o_jax.config import ConfigError, MeshConfig
from p2o_jax.runtime import liveness

T = TypeVar("T")
# share of it that JAX is given where the environment does not say; by itself it takes .75
GPU_MEMORY = ".95"


def split_cpu(num_devices: int) -> None:
    """Makes the CPU look like so many devices; before JAX is first used. On fewer cores it is no
    faster, but any mesh can be tried.

    XLA's thread pool must be larger than the number of threads that can wait in a collective, or
    they wait forever. With one device and no other process nothing waits, and more threads than
    cores would be slower.
    """
    if num_devices > 1 or in_a_group():
        os.environ.setdefault("NPROC", str(max(4 * num_devices, os.cpu_count() or 1)))
    if jax.config.values["jax_num_cpu_devices"] != num_devices:
        jax.config.update("jax_num_cpu_devices", num_devices)


def start(mesh: MeshConfig, compile_cache: str) -> int:
    """The number of devices of all processes, after what must be done before JAX is first used.

    That is: this process' CPU split, a GPU's memory taken but for a little, the other processes
    joined where there are any, compiled programs kept.

    Raises:
        peers.Missing: not all processes came in time.
    """
    if mesh.cpu_devices:
        split_cpu(mesh.cpu_devices)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", GPU_MEMORY)
    if in_a_group() and not jax.distributed.is_initialized():
        limits = liveness.Limits(mesh.start_s, mesh.silent_s, mesh.absent_s)
        address, number, index = place_in_group(limits.start)
        liveness.join(address, index, number, limits)
        # it would take SIGTERM for itself; guards.Preemption agrees by `any_process`
        jax.config.update("jax_enable_preemption_service", False)
        later = int(limits.silent + 30)  # so that `peers` speaks first, and names the host
        jax.distributed.initialize(
            address, number, index, initialization_timeout=later, heartbeat_timeout_seconds=later
        )
    if compile_cache:
        jax.config.update(
            "jax_compilation_cache_dir",
            compile_cache if "://" in compile_cache else os.path.abspath(compile_cache),
        )
    return jax.device_count()


def place_in_group(timeout_s: float) -> tuple[str, int, int]:
    """Process 0's HOST:PORT, the number of processes, and this one's: as JAX_* variables tell, or,
    what they don't, the cluster.

    Raises:
        ConfigError: neither does.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, number, index = map(os.environ.get, names)
    found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        address,
        int(number) if number else None,
        int(index) if index else None,
        None,
        None,
        int(timeout_s),
    )[:3]
    if missing := [name for name, value in zip(names, found, strict=True) if value is None]:
        raise ConfigError(
            f"this is one of several processes, but {', '.join(missing)} is not set, and no cluster"
            " tells it"
        )
    return found  # type: ignore[return-value]


def in_a_group() -> bool:
    """Whether the environment says that this is one of several processes, each started with the
    same command.

    By JAX_COORDINATOR_ADDRESS (with JAX_NUM_PROCESSES and JAX_PROCESS_ID), Slurm, Open MPI, or as a
    host of a TPU pod.
    """
    env = os.environ
    hosts = env.get("TPU_WORKER_HOSTNAMES", "").split(",")  # libtpu may put a sentence there
    several = any(
        int(env.get(name, "1")) > 1
        for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
    )
    several |= "JAX_COORDINATOR_ADDRESS" in env or (
        len(hosts) > 1 and all(re.fullmatch(r"[\w.:-]+", h) for h in hosts)
    )
    return several or _tpu_hosts() > 1


def _tpu_hosts() -> int:
    """Hosts of the TPU machine that this is one of, as JAX learns of them from Google's metadata
    server; 1 where there is no TPU.
    """
    pod = cloud_tpu_cluster.GceTpuCluster
    return pod.get_process_count() if pod.is_env_present() else 1


def is_main_process() -> bool:
    return jax.process_index() == 0


def broadcast_from_main(decide: Callable[[], T]) -> T:
    """What `decide` returns on process 0, on every process; it must be JSON. An exception there
    is raised everywhere.
    """
    if jax.process_count() == 1:
        return decide()
    liveness.met()
    text = ""
    if is_main_process():
        try:
            text = json.dumps({"value": decide()})
        except BaseException as e:  # whatever it is, all processes must learn of it
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
    """Whether it holds on every process."""
    if jax.process_count() == 1:
        return holds
    liveness.met()
    return bool(np.all(multihost_utils.process_allgather(np.bool_(holds))))


def any_process(holds: bool) -> bool:
    """Whether it holds on some process."""
    return not all_processes(not holds)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array on every process (for small results: tokens, log-probs, scalars)."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    liveness.met()
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def put(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """A global array from the same host array on every process; each takes only its devices'
    slices.
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
