"""TPUs as their maker's documentation describes them, and topologies of them for the compiler."""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from p2o_jax.config import ConfigError

GIB = 2**30


class Chip(NamedTuple):
    """What one JAX device has (a chip; of tpu7x half of one). Speeds are peaks, from docs.cloud.google.com/tpu/docs."""

    hbm_gib: float  # as the compiler enforces it
    flops: float  # bfloat16, a second
    hbm_bytes: float  # a second
    ici_bytes: float  # a second, one way, over all links to other chips
    dcn_bytes: float  # a second, one way: its share of a host's 200 Gbit/s between slices (told for v5e, taken for all)


CHIPS = {
    "v4": Chip(30.75, 275e12, 1228e9, 300e9, 6.25e9),
    "v5e": Chip(15.75, 197e12, 819e9, 200e9, 3.125e9),
    "v5p": Chip(95.74, 459e12, 2765e9, 600e9, 6.25e9),
    "v6e": Chip(31.25, 918e12, 1638e9, 400e9, 3.125e9),
    "tpu7x": Chip(94.75, 1153e12, 3690e9, 300e9, 3.125e9),
}


class Topology(NamedTuple):
    """A kind of chip, a slice's shape, and how many slices: `v5p:4x4x4,slices=2`."""

    kind: str
    shape: tuple[int, ...]
    slices: int

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    def devices(self) -> Sequence[Any]:
        """JAX devices that can be compiled for, slice after slice.

        Raises:
            ConfigError: no libtpu, or a shape that it refuses.
        """
        from jax.experimental import topologies

        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        hosts = _chips_per_host(self.kind, self.shape)
        how: dict[str, Any] = {"num_slices": self.slices} if self.slices > 1 else {}
        how |= {"chips_per_host_bounds": hosts} if hosts else {}
        how |= {"chip_config_name": "megacore"} if self.kind == "v4" else {}
        try:
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.kind}:{'x'.join(map(str, self.shape))}", **how
            ).devices
        except (RuntimeError, ValueError, NotImplementedError) as e:
            raise ConfigError(
                f"--topology={self}: {str(e).strip().splitlines()[0]} (the compiler is libtpu: pip install 'jax[tpu]')"
            ) from e
        return sorted(found, key=lambda d: (getattr(d, "slice_index", 0), d.id))

    def __str__(self) -> str:
        return f"{self.kind}:{'x'.join(map(str, self.shape))}" + (f",slices={self.slices}" if self.slices > 1 else "")


def parse(text: str) -> Topology:
    """The topology of a flag.

    Raises:
        ConfigError: not of the form kind:AxB[xC][,slices=N], or an unknown kind.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})(?:,slices=(\d+))?", text)
    if not match or match.group(1) not in CHIPS:
        raise ConfigError(f"--topology={text}: expected KIND:AxB or KIND:AxBxC[,slices=N] with one of {', '.join(CHIPS)}")
    return Topology(match.group(1), tuple(int(n) for n in match.group(2).split("x")), int(match.group(3) or 1))


def _chips_per_host(kind: str, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """What libtpu must be told about slices that are smaller than a host, or one host of eight chips."""
    if shape == (1, 1):
        return (1, 1, 1)
    return (2, 4, 1) if kind in ("v5e", "v6e") and shape == (2, 4) else None
