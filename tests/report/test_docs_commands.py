"""The commands of the documentation: each is run here, or by the test that is named here, or
needs what is named here.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from p2o_jax import config, main
from p2o_jax.config import loading, rules

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md")) + [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tpu/README.md")
]
PROGRAMS = (
    r"python|pip|make|gcloud|kubectl|docker|xpk|sky|sbatch|tensorboard|export|git|JAX_\w+=\S+"
    r" python|(?:\.venv/bin|tpu|gpu)/"
)
COMMAND = re.compile(rf"(?m)^    ((?:{PROGRAMS})\b.*)$")
SCRIPT = re.compile(r"(tpu|gpu)/\w+\.sh")
RUN_BY = {  # what a command begins with, after `python -m`: the test that runs it
    # its config; the run takes minutes
    "make quickstart": "tests/config/test_config.py::test_shipped_configs_load_and_keep_the_rules",
    "p2o_jax.main": (
        "tests/evaluation/test_training.py::test_own_questions_on_a_hugging_face_model"
    ),
    "p2o_jax.sft": "tests/test_sft.py::test_the_loss_falls_and_the_run_leaves_its_records",
    "p2o_jax.evaluate": (
        "tests/evaluation/test_evaluate.py::"
        "test_a_run_s_policy_is_evaluated_with_the_run_s_prompts_and_leaves_no_copy"
    ),
    "p2o_jax.prepare": "tests/data/test_prepare.py::test_the_command_and_its_exit_code",
    "p2o_jax.generate": (
        "tests/commands/test_commands.py::test_generate_writes_k_completions_of_each_prompt"
    ),
    "examples.laptop": (
        "tests/test_laptop.py::test_the_command_trains_both_arms_on_the_model_and_writes_the_report"
    ),
    "p2o_jax.probe": "tests/commands/test_probe.py::test_probe",
    "p2o_jax.grade": "tests/commands/test_grade.py::test_lines_come_back_with_their_grades",
    "p2o_jax.score": "tests/commands/test_commands.py::test_score_equals_golden",
    "p2o_jax.export": (
        "tests/commands/test_commands.py::test_export_writes_the_newest_policy_or_that_of_a_step"
    ),
    "p2o_jax.report": (
        "tests/report/test_report_data.py::test_the_command_writes_one_file_that_fetches_nothing"
    ),
    "p2o_jax.plan": "tests/plan/test_tpu.py::test_a_plan_from_the_command_line",
    "docs.profile_picture": (
        "tests/report/test_docs.py::test_the_picture_of_a_profile_has_a_bar_for_each_phase"
    ),
    "make docs": "tests/report/test_docs.py::test_the_site_builds_without_a_warning",
}
NEEDS = {
    "make test": "is what runs this",
    "make lint": "is run by .ci/run",
    "make venv": "is run by .ci/run, with other extras",
    "pip install": "a package index",
    "pip download": "a package index",
    "gcloud": "a project of Google Cloud",
    "kubectl": "a cluster",
    "xpk": "a cluster",
    "docker": "Docker",
    "tensorboard": "a package of its own",
    ".venv/bin/mkdocs serve": "a browser",
    ".venv/bin/python trace.py": "is the reader's own file",
}


class Command(NamedTuple):
    """A line of a page, its continuations joined, without comment and optional parts; `env`:
    what the page has exported before it.
    """

    page: str
    line: str
    env: dict[str, str]


def commands(text: str, page: str = "") -> list[Command]:
    """The commands of a page, in order; `export` lines are in the `env` of those below."""
    result, env = [], {}
    text = re.sub(r"(?ms)^```bash\n(.*?)^```$", lambda block: indented(block[1]), text)
    for line in COMMAND.findall(re.sub(r" \\\n +", " ", text)):
        line = re.sub(r"\[.*?\]", "", re.sub(r" +# .*", "", line)) if "'" not in line else line
        if line.startswith("export "):
            env = env | dict(word.split("=", 1) for word in shlex.split(line)[1:])
        else:
            result.append(Command(page, line.strip(), env))
    return result


def indented(block: str) -> str:
    """The lines of a fenced block, each behind four spaces."""
    return re.sub(r"(?m)^", "    ", block)


ALL = [
    command
    for page in PAGES
    for command in commands(page.read_text(encoding="utf-8"), str(page.relative_to(ROOT)))
]
SCRIPTS = [command for command in ALL if SCRIPT.match(command.line)]


def key(line: str, table: dict[str, str]) -> str | None:
    words = line.partition("-m ")[2] or line
    return next((begin for begin in table if re.match(rf"{re.escape(begin)}\b", words)), None)


def test_every_command_is_run_by_a_test_or_needs_what_is_said():
    known = [
        SCRIPT.match(c.line)
        or key(c.line, RUN_BY)
        or key(c.line, NEEDS)
        or is_tried_benchmark(c.line)
        for c in ALL
    ]
    assert [
        (c.page, c.line) for c, is_known in zip(ALL, known, strict=True) if not is_known
    ] == [] and len(ALL) > 50


def is_tried_benchmark(line: str) -> bool:
    """Whether the line runs a benchmark that some test imports: they take minutes to hours, and
    tests run their parts.
    """
    name = re.search(r"python -m benchmarks\.(\w+)", line)
    tests = (path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
    return name is not None and any(
        re.search(rf"from benchmarks(\.| import (.*, )?){name[1]}\b", text) for text in tests
    )


def test_the_tests_that_are_named_are_there():
    for where in RUN_BY.values():
        path, _, name = where.partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), where


def test_a_command_that_nothing_runs_is_found():
    assert is_tried_benchmark("python -m benchmarks.kill --runs 60") and not is_tried_benchmark(
        "python -m benchmarks.none"
    )
    assert not key("python -m p2o_jax.none", RUN_BY) and not key("rm x", NEEDS)


def test_commands_are_found():
    text = (
        "a\n\n    export A=1 B='x y'\n    tpu/x.sh --config c \\\n        --more   # why\n    def"
        " no():\n\n"
    )
    text += "    pip install 'a[b]'\n    python -m m [--x]\n"
    env = {"A": "1", "B": "x y"}
    lines = ["tpu/x.sh --config c --more", "pip install 'a[b]'", "python -m m"]
    assert commands(text) == [Command("", line, env) for line in lines]
    fenced = "```bash\nexport A=1\ntpu/x.sh \\\n    --more\n```\n```json\nmake no\n```\n"
    assert commands(fenced) == [Command("", "tpu/x.sh --more", {"A": "1"})]


@pytest.mark.parametrize(
    "command", SCRIPTS, ids=lambda c: f"{c.page}: {c.line.split()[0]} {c.env.get('P2O_NAME')}"
)
def test_scripts_take_what_the_pages_give_them(command, tmp_path):
    if shutil.which("bash") is None:
        pytest.skip("the scripts are for bash")
    env = {
        name: value for name, value in os.environ.items() if not name.startswith("P2O_")
    } | command.env
    done = subprocess.run(
        ["bash", "-c", f"{command.line} --dry-run"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout, done.stderr


TRAINING = [command for command in SCRIPTS if "--config" in command.line]


@pytest.mark.parametrize(
    "command", TRAINING, ids=lambda c: f"{c.page}: {c.line.split()[0]} {c.env.get('P2O_NAME')}"
)
def test_what_scripts_train_keeps_the_rules_on_the_devices_that_the_page_asks_for(command):
    flags, overrides = main.COMMAND_LINE.parse(shlex.split(command.line)[1:])
    cfg = config.resolve(
        loading.from_config_dict(loading.load_config_dict(str(ROOT / flags["config"]), overrides))
    )
    assert rules.problems(cfg, devices(command.env)) == []


def devices(env: dict[str, str]) -> int:
    """Chips or GPUs of a page's settings; one GPU where it does not say."""
    kind, _, number = env.get("P2O_TYPE", "").partition("-")
    if kind:
        return int(number) // (2 if kind in ("v4", "v5p") else 1) * int(env.get("P2O_SLICES", "1"))
    return int(env.get("P2O_NODES", "1")) * int(env.get("P2O_GPUS", "1"))
