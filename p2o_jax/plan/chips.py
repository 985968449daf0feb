"""Specifications of TPUs and GPUs, and topologies to compile for."""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from p2o_jax.config import ConfigError

GIB = 2**30


class Chip(NamedTuple):
    """Memory and peak speeds of a JAX device: a chip, or half a chip of tpu7x.

    Sources: docs.cloud.google.com/tpu/docs for TPUs, and NVIDIA's data sheets for GPUs (SXM modules
    of 80, 80 and 141 GB, without sparsity).
    """

    # The compiler's limit. For GPUs, what JAX gets with XLA_PYTHON_CLIENT_MEM_FRACTION=.95.
    hbm_gib: float
    flops: float  # per second, in bfloat16
    hbm_bytes: float  # per second
    ici_bytes: float  # per second, one way, over all links to other chips; NVLink on GPUs
    # Per second, one way. For TPUs, a chip's share of its host's 200 Gbit/s between slices, which
    # is documented for v5e and assumed for the others. For GPUs, InfiniBand.
    dcn_bytes: float


CHIPS = {
    "v4": Chip(30.75, 275e12, 1228e9, 300e9, 6.25e9),
    "v5e": Chip(15.75, 197e12, 819e9, 200e9, 3.125e9),
    "v5p": Chip(95.74, 459e12, 2765e9, 600e9, 6.25e9),
    "v6e": Chip(31.25, 918e12, 1638e9, 400e9, 3.125e9),
    "tpu7x": Chip(94.75, 1153e12, 3690e9, 300e9, 3.125e9),
    "a100": Chip(0.95 * 79.1, 312e12, 2039e9, 300e9, 25e9),
    "h100": Chip(0.95 * 79.1, 989e12, 3350e9, 450e9, 50e9),
    "h200": Chip(0.95 * 139.8, 989e12, 4800e9, 450e9, 50e9),
}


class Gpu(NamedTuple):
    """Properties of a GPU that XLA needs to compile for it, from NVIDIA's tuning guides."""

    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    fpus: int  # per core
    shared_memory: int  # bytes per core
    l2_bytes: int
    clock_ghz: float


GPUS = {
    "a100": Gpu((8, 0), 108, 64, 164 * 1024, 40 * 2**20, 1.41),
    "h100": Gpu((9, 0), 132, 128, 228 * 1024, 50 * 2**20, 1.98),
    "h200": Gpu((9, 0), 132, 128, 228 * 1024, 60 * 2**20, 1.98),
}


class Topology(NamedTuple):
    """A kind of chip, the shape of a slice, and the number of slices: `v5p:4x4x4,slices=2`.

    For GPUs, the shape is the number of GPUs per host, and the slices are hosts: `h100:8`.
    """

    kind: str
    shape: tuple[int, ...]
    slices: int

    @property
    def chip(self) -> Chip:
        """The specification of the chip."""
        return CHIPS[self.kind]

    def devices(self) -> Sequence[Any]:
        """JAX devices to compile for, ordered by slice.

        Raises:
            ConfigError: the compiler is not installed, or rejects the shape.
        """
        from jax.experimental import topologies

        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        try:
            devices = topologies.get_topology_desc(**self._arguments()).devices
        except (RuntimeError, ValueError, NotImplementedError) as e:
            compiler = (
                "jax[cuda13]' nvidia-cuda-nvcc nvidia-nvvm" if self.kind in GPUS else "jax[tpu]'"
            )
            raise ConfigError(
                f"--topology={self}: {str(e).strip().splitlines()[0]} (the compiler: pip install"
                f" '{compiler})"
            ) from e
        return sorted(devices, key=lambda d: (getattr(d, "slice_index", 0), d.id))

    def _arguments(self) -> dict[str, Any]:
        """The arguments of JAX's `get_topology_desc`."""
        if self.kind in GPUS:
            return {
                "platform": "cuda",
                "target_config": _target(self.kind),
                "topology": f"1x{self.slices}x{self.shape[0]}",
            }
        hosts = _chips_per_host(self.kind, self.shape)
        arguments: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        arguments |= {"chips_per_host_bounds": hosts} if hosts else {}
        arguments |= {"chip_config_name": "megacore"} if self.kind == "v4" else {}
        return arguments | {
            "platform": "tpu",
            "topology_name": f"{self.kind}:{'x'.join(map(str, self.shape))}",
        }

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}" + (
            f",slices={self.slices}" if self.slices > 1 else ""
        )


def parse(text: str) -> Topology:
    """Parses kind:AxB[xC][,slices=N], or kind:N[,slices=N] for GPUs.

    Raises:
        ConfigError: the text has another form, or the kind is unknown.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){0,2})(?:,slices=(\d+))?", text)
    shape = tuple(int(n) for n in match.group(2).split("x")) if match else ()
    if not match or match.group(1) not in CHIPS or (match.group(1) in GPUS) != (len(shape) == 1):
        tpus = ", ".join(kind for kind in CHIPS if kind not in GPUS)
        raise ConfigError(
            f"--topology={text}: expected KIND:AxB or KIND:AxBxC[,slices=N] with one of {tpus}, or"
            f" KIND:N[,slices=N] with one of {', '.join(GPUS)}: GPUs per host, and hosts"
        )
    return Topology(match.group(1), shape, int(match.group(3) or 1))


def _target(kind: str) -> str:
    """XLA's target configuration of a GPU, in protobuf's text format."""
    gpu, chip = GPUS[kind], CHIPS[kind]
    major, minor = gpu.capability
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared_memory - 1024}
  shared_memory_per_core: {gpu.shared_memory}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  clock_rate_ghz: {gpu.clock_ghz}
  l2_cache_size: {gpu.l2_bytes}
  memory_bandwidth: {int(chip.hbm_bytes)}
  device_memory_size: {int(chip.hbm_gib * GIB)}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{kind.upper()}"
"""


def _chips_per_host(kind: str, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """The bounds that libtpu needs for a slice within a host, or of one host of eight chips."""
    if shape == (1, 1):
        return (1, 1, 1)
    return (2, 4, 1) if kind in ("v5e", "v6e") and shape == (2, 4) else None
