"""Imports go down only: a room of p2o_jax imports from lower floors, or from inside itself; siblings do not know each other.

A room is a module or a folder of the package. Found by reading the source, imports inside functions included.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "p2o_jax"

FLOORS = (
    # 0: ranges of numbers, which settings and flags have; what ends with the process, however that ends
    ("ranges", "run_lock"),
    # 1: host records and settings
    ("records", "config", "progress", "files", "file_digests", "guards", "peers", "record_rows", "subprocesses"),
    # 2: rules and files of settings; what needs nothing but records and settings
    (
        "config_rules",
        "config_files",
        "data",
        "rewards",
        "gepa",
        "mining",
        "assign",
        "bandit",
        "history",
        "models",
        "runtime",
        "sampling_params",
    ),  # fmt: skip
    # 3: what is built of those (metrics and world use gepa's names and prompts)
    ("rollout", "rl", "world", "metrics", "checkpoint_reader", "recipes", "limits", "run_records"),
    # 4: evaluation on the sampler; the records of a run, its directory; what learner and sampler take of memory
    ("evaluation", "recorder", "footprint", "checkpoint", "run_directory"),
    # 5: Config -> Parts; what is made of a run's records
    ("build", "compare"),
    # 6: the loop
    ("train",),
    # 7: one module per command; all but main use main's error handling
    ("main", "generate", "score", "export", "evaluate", "prepare", "plan", "report"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
COMMANDS = FLOORS[-1]
MAY_IMPORT_SIBLINGS = {(name, "main") for name in COMMANDS if name != "main"}  # main.command: errors in one line each
MAY_IMPORT_SIBLINGS |= {("evaluate", "generate"), ("evaluate", "export")}  # how to fit the sampler, and a run's policy
WITHOUT_JAX = (
    "ranges", "run_lock", "sampling_params",
    "data", "rewards", "gepa", "mining", "assign", "bandit", "history", "records", "config", "config_rules", "config_files",
)  # fmt: skip


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imports(source: str) -> set[str]:
    """Every dotted name that the source imports: `from a import b` is a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def upward(room: str, source: str) -> list[str]:
    """A line for every import of the room's source that does not go down."""
    found = []
    for name in sorted(imports(source)):
        package, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if package != "p2o_jax" or target in ("", room, "__version__"):
            continue
        if target not in FLOOR:
            found.append(f"{room} imports {target}: give it a floor")
        elif FLOOR[target] >= FLOOR[room] and (room, target) not in MAY_IMPORT_SIBLINGS:
            found.append(f"{room} (floor {FLOOR[room]}) imports {target} (floor {FLOOR[target]})")
    return found


def test_every_room_has_one_floor():
    assert len(FLOOR) == sum(map(len, FLOORS))
    assert {room_of(path) for path in modules()} - set(FLOOR) == set(), "rooms without a floor"
    assert set(FLOOR) - {room_of(path) for path in modules()} - set(COMMANDS) == set(), "floors without a room"


@pytest.mark.parametrize("room", sorted({room_of(path) for path in modules()}))
def test_imports_go_down_only(room):
    assert room in FLOOR, "give it a floor"
    assert [line for path in modules() if room_of(path) == room for line in upward(room, path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("rl", "from p2o_jax.train import run"),
        ("rl", "from p2o_jax import config, build"),
        ("gepa", "def f():\n    import p2o_jax.rollout.engine"),
        ("rollout", "from p2o_jax.rl import losses"),
        ("records", "from p2o_jax.config import Config"),
        ("evaluation", "if True:\n    from p2o_jax import main"),
        ("rl", "from p2o_jax import brand_new"),
    ],
)
def test_an_upward_import_is_found(room, source):
    assert len(upward(room, source)) == 1


def test_downward_and_own_imports_are_fine():
    source = "import jax\nfrom p2o_jax import config, runtime\nfrom p2o_jax.rl.batch import Rows\nfrom p2o_jax.models import spec"
    assert upward("rl", source) == []
    assert upward("generate", "from p2o_jax.main import command") == []
    assert upward("main", "from p2o_jax import generate") != []


def uses_jax(source: str) -> set[str]:
    return {name for name in imports(source) if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax")}


@pytest.mark.parametrize("room", WITHOUT_JAX)
def test_no_jax_in(room):
    paths = [path for path in modules() if room_of(path) == room]
    assert paths
    assert {path.name: found for path in paths if (found := uses_jax(path.read_text(encoding="utf-8")))} == {}


def test_a_jax_import_is_found():
    assert uses_jax("def f():\n    from jax import numpy as jnp") and uses_jax("import jax.numpy as jnp") and uses_jax("import optax")
    assert not uses_jax("import jaxtyping\nfrom jaxtyping import Array")


def test_those_rooms_load_no_jax_through_others_either():
    names = ", ".join(f"p2o_jax.{room}" for room in WITHOUT_JAX)
    code = f"import sys\nimport {names}\nimport p2o_jax.data.sources, p2o_jax.rewards.verify\nprint('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.strip() == "False"
