"""Bytes per chip of the update, by the real TPU compiler on any CPU: `python -m benchmarks.memory_plan [--topology v5p:2x2x2]`.

Needs libtpu (`pip install 'jax[tpu]==0.10.2'` in an environment of its own) and no TPU. Nothing is run: the update of the config's
rows and of `--model`, one of SPECS, is compiled for the topology's devices, with splash attention, and the compiler says what it
needs. `--config` and `--config.a.b=value` as in training. Set JAX_PLATFORMS=cpu, and ALLOW_MULTIPLE_LIBTPU_LOAD=1 where two run at once.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import report
from benchmarks.report import Target
from p2o_jax import config, config_files
from p2o_jax.config import Config
from p2o_jax.main import command
from p2o_jax.models.spec import ModelSpec, Rope, num_params

GIB = 2**30
LIMITS_GIB = {"v5e": 15.75, "v4": 30.75, "v6e": 31.25, "v5p": 95.74, "tpu7x": 94.75}  # per device, as the compiler enforces them
_QWEN3 = {"family": "qwen3", "vocab": 151936, "head_dim": 128, "rope": Rope(theta=1e6), "qk_norm": True, "tied": True}
SPECS = {
    "qwen3-0.6b": ModelSpec(width=1024, layers=28, heads=16, kv_heads=8, mlp=3072, **_QWEN3),
    "qwen3-1.7b": ModelSpec(width=2048, layers=28, heads=16, kv_heads=8, mlp=6144, **_QWEN3),
    "qwen3-4b": ModelSpec(width=2560, layers=36, heads=32, kv_heads=8, mlp=9728, **_QWEN3),
}


def run(argv: Sequence[str]) -> None:
    """Compiles and reports.

    Raises:
        ConfigError: wrong flags or config.
    """
    flags, overrides = config_files.parse_flags(argv, {"topology": "v5p:2x2x2", "config": "configs/qwen3_4b.py", "model": "qwen3-4b"})
    cfg = config.resolve(config_files.from_config_dict(config_files.load_config_dict(flags["config"], overrides)))
    figures = {"topology": flags["topology"], "model": flags["model"], **plan(cfg, SPECS[flags["model"]], flags["topology"])}
    limit = LIMITS_GIB[flags["topology"].split(":")[0]]
    report.finish("memory_plan", figures, {"fits": Target("peak_gib", "<=", limit)})


def plan(cfg: Config, spec: ModelSpec, topology: str) -> dict[str, Any]:
    """Figures of the compiled update: GiB per chip of arguments, temporaries and peak, and what was compiled."""
    import jax.numpy as jnp
    from jax.experimental import topologies

    from p2o_jax.models import sharding
    from p2o_jax.rl.learner import Learner

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = sharding.make_mesh(config.mesh_shape(cfg.mesh, len(devices)), devices)
    padding = -spec.vocab % mesh.shape["tensor"]
    spec = dataclasses.replace(spec, padded_vocab=spec.vocab + padding if padding else 0)
    learner = Learner(spec, mesh, cfg, 100, jnp.bfloat16, 0)
    start = time.monotonic()
    lowered = learner.lower_update()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    return {
        "parameters": num_params(spec),
        "mesh": dict(mesh.shape),
        "row_tokens": config.trained_row_tokens(cfg),
        "micro_rows": cfg.optim.micro_rows,
        "remat": cfg.model.remat,
        "splash_calls": lowered.as_text().count("tpu_custom_call"),
        "arguments_gib": round(memory.argument_size_in_bytes / GIB, 3),
        "temporaries_gib": round(memory.temp_size_in_bytes / GIB, 3),
        "peak_gib": round(memory.peak_memory_in_bytes / GIB, 3),
        "compile_seconds": round(time.monotonic() - start, 1),
    }


if __name__ == "__main__":
    command(run)
