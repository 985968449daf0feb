"""Programs compiled by one machine are found by the next one in a bucket."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import fsspec
from fsspec.implementations.memory import MemoryFileSystem

class Bucket(MemoryFileSystem):
    "Google's buckets, in memory."
    def __init__(self, **options):
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).partition("://")[2] or path)

fsspec.register_implementation("gcs", Bucket)

import jax
from p2o_jax import config
from p2o_jax.runtime import distributed

hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None
)
distributed.MIN_COMPILE_SECONDS = 0
distributed.start(config.MeshConfig(), "gs://my-bucket/compile_cache")
jax.jit(lambda x: x * 2 + 1)(1.0)
assert not hits
jax.clear_caches()  # as another process begins
jax.jit(lambda x: x * 2 + 1)(1.0)
assert hits
print(*MemoryFileSystem.store)
"""


def test_compiled_programs_are_kept_in_a_bucket():
    root = Path(__file__).parents[2]
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() and all(
        name.startswith("/my-bucket/compile_cache/jit") for name in done.stdout.split()
    )
    assert not (root / "gs:").exists()
