"""Eight fake CPU devices, no silent broadcasting between ranks, and what tests share.

Most of the time of a test goes into compiling, so XLA does little of it (XLA_FLAGS). Commands that
tests start inherit these flags.
"""

import atexit
import functools
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

# Many images set it; every command that a test starts would compile all the modules it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Every process that a test starts imports tests/site/sitecustomize.py first.
SITE = str(Path(__file__).parent / "site")
if SITE not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SITE, os.getenv("PYTHONPATH")]))

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Without optimization, and with few memory maps for each program. Without the emitters of fusions,
# too, in the versions that have this flag: the others end on a flag that they do not know.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false"
    * metadata.version("jaxlib").startswith(("0.10.", "0.11.")),
)
# OpenBLAS's threads keep a core busy for a moment before they sleep, at every start of a process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Threads of XLA's pool: with fewer, collectives of eight devices can wait forever.
os.environ.setdefault("NPROC", "32")

# All workers, and the commands that tests start, share their compiled programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="p2o-compiled-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax  # noqa: E402  # which reads the environment
import pytest  # noqa: E402

gc.set_threshold(200_000)  # as in tests/site/sitecustomize.py
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Linux allows a process 65,530 memory maps, and a compiled program takes up to 100. Beyond the
# limit XLA's compiler ends with a segmentation fault.
MAX_MAPS = 10_000

# The files that take longest start first, so that no worker is left with one at the end.
LONGEST = (
    "tests/multihost/test_training.py",
    "tests/test_end_to_end.py",
    "tests/rollout/test_engine.py",
    "tests/rewards/test_graders.py",
    "tests/benchmarks/test_kill.py",
    "tests/evaluation/test_training.py",
    "tests/rl/test_learner.py",
    "tests/models/test_golden_families.py",
    "tests/models/test_experts.py",
    "tests/commands/test_commands.py",
    "tests/rollout/test_layer_caches.py",
    "tests/test_public_data.py",
    "tests/tracking/test_checkpoint.py",
    "tests/startup/test_memory_report.py",
    "tests/rl/test_router_replay.py",
    "tests/models/test_pallas_decode.py",
    "tests/models/test_layer_types.py",
    "tests/models/test_golden.py",
    "tests/models/test_lora.py",
    "tests/test_run.py",
    "tests/test_sft.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the files by LONGEST; the others keep their order."""
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


def memory_maps() -> int:
    """The memory maps of this process; MAX_MAPS where they cannot be counted."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return MAX_MAPS


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped(request: pytest.FixtureRequest) -> Iterator[None]:
    """Drops a module's compiled programs when there are many, with the objects that it caches."""
    yield
    if memory_maps() < MAX_MAPS:
        return
    for value in vars(request.module).values():
        if isinstance(value, functools._lru_cache_wrapper):
            value.cache_clear()
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this test run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def compiled() -> Path:
    """The compilation cache of this test run."""
    return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
