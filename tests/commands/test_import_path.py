"""The commands do not import from the current folder, which may be somebody else's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = (
    "jax",
    "numpy",
    "orbax",
    "json",
    "ml_collections",
    "transformers",
    "difflib",
    "argparse",
    "traceback",
    "subprocess",
)
MARK = (
    "import pathlib; (pathlib.Path(__file__).parent / 'imported').touch(); raise"
    " SystemExit('imported ' + __file__)\n"
)


@pytest.fixture
def folder(tmp_path):
    """A folder of a stranger's with modules that must not be imported."""
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text(MARK)
    return tmp_path


def run(folder, *words, path=str(ROOT), flags=()):
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")
    } | ({"PYTHONPATH": path} if path else {})
    return subprocess.run(
        [sys.executable, *flags, "-m", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_command_that_loads_everything(folder):
    (folder / "run").mkdir()
    (folder / "run" / "config.json").write_text(json.dumps({"data": {"max_prompt_tokens": 5}}))
    done = run(folder, "p2o_jax.export", "--workdir=run", "--out=out")
    assert done.returncode == 2 and "no checkpoints" in done.stderr, done.stderr
    assert not (folder / "imported").exists()


@pytest.mark.parametrize(
    ("path", "flags"),
    [
        (f":{ROOT}", ()),
        (f"{ROOT}:", ()),
        ("", ()),
        (str(ROOT), ("-P",)),
        (str(ROOT), ("-X", "dev")),
    ],
    ids=[
        "an empty entry first",
        "last",
        "the package's own folder",
        "safe path already",
        "an option",
    ],
)
def test_however_python_is_started(folder, path, flags):
    if not path:  # a clone without installation
        (folder / "p2o_jax").symlink_to(ROOT / "p2o_jax")
    done = run(folder, "p2o_jax.main", "--help", path=path, flags=flags)
    assert done.returncode == 0 and done.stdout.startswith("usage: python -m p2o_jax.main"), (
        done.stderr
    )
    assert not (folder / "imported").exists()


def test_a_folder_that_pythonpath_names_stays(folder):
    done = run(folder, "p2o_jax.main", "--help", path=f"{ROOT}:{folder}:")
    assert "imported" in done.stderr and (folder / "imported").exists()


def test_who_only_imports_the_package_keeps_the_path(tmp_path):
    code = "import sys; before = list(sys.path); import p2o_jax; assert sys.path == before\n"
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool" / "__init__.py").write_text(code)
    (tmp_path / "tool" / "p2o_jax.py").write_text(
        f"import sys; assert sys.path[0] == {str(tmp_path)!r}; print('kept')"
    )
    done = run(tmp_path, "tool.p2o_jax")
    assert done.stdout.strip() == "kept", done.stderr
