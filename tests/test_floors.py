"""Imports go down only: a part of p2o_jax imports from lower floors, or from inside itself;
siblings do not know each other.

A part is a module or a folder of the package. Found by reading the source, imports inside functions
included.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "p2o_jax"

FLOORS = (
    # 0: settings; the host records that packages hand to each other
    ("config", "types"),
    # 1: the state of a run; processes, files and the terminal
    ("state", "runtime"),
    # 2: what needs nothing but records and settings
    ("models", "rewards", "p2o"),
    # 3: prompt search, which recognizes answers as the graders do
    ("gepa",),
    # 4: questions (training sets are made with the graders); the built-in world
    ("data", "toy_world"),
    # 5: learner and sampler, which do not know each other
    ("rl", "rollout"),
    # 6: held-out evaluation on the sampler
    ("evaluation",),
    # 7: metrics, records and checkpoints of a run
    ("tracking",),
    # 8: from a Config to the components of a run
    ("startup",),
    # 9: the loop; what is done with a model outside training
    ("train", "offline"),
    # 10: a training run as an object
    ("run",),
    # 11: one module per command; all but main use main's error handling
    (
        "main",
        "sft",
        "generate",
        "probe",
        "grade",
        "score",
        "export",
        "evaluate",
        "prepare",
        "plan",
        "report",
    ),
)
FLOOR = {part: number for number, packages in enumerate(FLOORS) for part in packages}
COMMANDS = FLOORS[-1]
# main.command: errors in one line each
MAY_IMPORT_SIBLINGS = {(name, "main") for name in COMMANDS if name != "main"}
WITHOUT_JAX = ("config", "types", "state", "data", "rewards", "gepa", "p2o")
# the other modules of `runtime` are needed before JAX, or without it
JAX_IN_RUNTIME = (
    "distributed",
    "rng",
)
NEEDS_AN_EXTRA = ("reasoning_gym_worker",)  # loaded in worker processes only


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def imports(source: str) -> set[str]:
    """Every dotted name that the source imports: `from a import b` is a.b."""
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    return imported


def upward(part: str, source: str) -> list[str]:
    """A line for every import of the part's source that does not go down."""
    imported = []
    for name in sorted(imports(source)):
        package, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if package != "p2o_jax" or target in ("", part, "__version__"):
            continue
        if target not in FLOOR:
            imported.append(f"{part} imports {target}: give it a floor")
        elif FLOOR[target] >= FLOOR[part] and (part, target) not in MAY_IMPORT_SIBLINGS:
            imported.append(
                f"{part} (floor {FLOOR[part]}) imports {target} (floor {FLOOR[target]})"
            )
    return imported


def test_every_room_has_one_floor():
    assert len(FLOOR) == sum(map(len, FLOORS))
    assert {package_of(path) for path in modules()} - set(FLOOR) == set(), (
        "packages without a floor"
    )
    assert set(FLOOR) - {package_of(path) for path in modules()} - set(COMMANDS) == set(), (
        "floors without a package"
    )


@pytest.mark.parametrize("part", sorted({package_of(path) for path in modules()}))
def test_imports_go_down_only(part):
    assert part in FLOOR, "give it a floor"
    assert [
        line
        for path in modules()
        if package_of(path) == part
        for line in upward(part, path.read_text(encoding="utf-8"))
    ] == []


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("rl", "from p2o_jax.train import run"),
        ("rl", "from p2o_jax import config, startup"),
        ("gepa", "def f():\n    import p2o_jax.rollout.engine"),
        ("rollout", "from p2o_jax.rl import losses"),
        ("types", "from p2o_jax.config import Config"),
        ("evaluation", "if True:\n    from p2o_jax import main"),
        ("rl", "from p2o_jax import brand_new"),
    ],
)
def test_an_upward_import_is_found(part, source):
    assert len(upward(part, source)) == 1


def test_downward_and_own_imports_are_fine():
    source = (
        "import jax\nfrom p2o_jax import config, runtime\nfrom p2o_jax.rl.batch import Rows\nfrom"
        " p2o_jax.models import spec"
    )
    assert upward("rl", source) == []
    assert upward("generate", "from p2o_jax.main import command") == []
    assert upward("main", "from p2o_jax import generate") != []


def uses_jax(source: str) -> set[str]:
    return {
        name
        for name in imports(source)
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "optax", "orbax")
    }


def without_jax(part: str) -> list[Path]:
    return [
        path for path in modules() if package_of(path) == part and path.stem not in JAX_IN_RUNTIME
    ]


@pytest.mark.parametrize("part", (*WITHOUT_JAX, "runtime"))
def test_no_jax_in(part):
    paths = without_jax(part)
    assert paths
    assert {
        path.name: imported
        for path in paths
        if (imported := uses_jax(path.read_text(encoding="utf-8")))
    } == {}


def test_a_jax_import_is_found():
    assert (
        uses_jax("def f():\n    from jax import numpy as jnp")
        and uses_jax("import jax.numpy as jnp")
        and uses_jax("import optax")
    )
    assert not uses_jax("import jaxtyping\nfrom jaxtyping import Array")


def test_those_rooms_load_no_jax_through_others_either():
    paths = [path for part in (*WITHOUT_JAX, "runtime") for path in without_jax(part)]
    names = ", ".join(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for path in paths
        if path.stem not in NEEDS_AN_EXTRA
    )
    code = f"import sys\nimport {names}\nprint('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert done.stdout.strip() == "False"
