"""Flags and settings on command lines, `--help`, and what is wrong with them, all at once."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from p2o_jax.config import Config, ConfigError, ranges
from p2o_jax.config.command_line import CommandLine, Flag, Switch
from p2o_jax.config.setting import settings

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "main": "main",
    "evaluate": "run",
    "generate": "run",
    "grade": "run",
    "score": "run",
    "export": "run",
    "prepare": "run",
    "plan.__main__": "run",
    "report.__main__": "main",
}
TRAIN = CommandLine(
    "mine",
    "Mine.",
    Flag("config", "C", required=True),
    Flag("workdir", "W"),
    Switch("restart", "R"),
)
NUMBERS = CommandLine(
    "mine",
    "Mine.",
    Flag("n", "N", 1, kind=int, within=ranges.COUNT),
    Flag("t", "T", None, kind=float, within=ranges.TEMPERATURE_OR_GREEDY),
    Flag("sizes", "S", [1, 2], kind=int, within=ranges.COUNT, several=True),
    Flag("dtype", "D", "a", choices=("a", "b")),
    Flag("quick", "Q", False, kind=bool),
    positional=Flag("name", "Name", choices=("x", "y"), metavar="x|y"),
    settings=False,
)


def problems_of(run, *args) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        run(*args)
    return list(raised.value.problems)


def test_flags_and_settings_with_and_without_an_equals_sign():
    words = "--config a.py --config.optim.lr=1e-3 --config.data.path x=y.jsonl --workdir=w"
    flags, overrides = TRAIN.parse(words.split())
    assert flags == {"config": "a.py", "workdir": "w", "restart": False}
    assert overrides == [("optim.lr", "1e-3"), ("data.path", "x=y.jsonl")]
    flags, overrides = TRAIN.parse(["--restart", "--config=a.py", "--config.data.path=a b"])
    assert flags == {"config": "a.py", "workdir": "", "restart": True}
    assert overrides == [("data.path", "a b")]


def test_a_value_may_begin_with_one_dash_and_the_last_one_counts():
    words = ["--config=a.py", "--config", "-b", "--workdir", "- c", "--config.mesh.data", "-1"]
    flags, overrides = TRAIN.parse(words)
    assert flags == {"config": "-b", "workdir": "- c", "restart": False}
    assert overrides == [("mesh.data", "-1")]


def test_wrong_flags_are_reported_together():
    assert problems_of(
        TRAIN.parse, ["--confg=a.py", "loose", "--workdir", "--restart=x", "--config.optim.lr"]
    ) == [
        "--confg: unknown flag (did you mean --config?)",
        "loose: unknown flag",
        "--workdir: needs a value",
        "--restart=x: takes no value",
        "--config.optim.lr: needs a value",
        "--config: required",
    ]
    assert problems_of(TRAIN.parse, ["--conf", "a.py", "-x", "--config=b"]) == [
        "--conf: unknown flag (did you mean --config?)",
        "a.py: unknown flag",
        "-x: unknown flag",
    ]
    assert problems_of(TRAIN.parse, ["--config=a", "--learning_rate=1"]) == [
        "--learning_rate: unknown flag (did you mean --config.optim.lr?)"
    ]


def test_values_have_types_ranges_and_choices():
    words = "y --n 16 --t=0 --sizes=3,4 --dtype b --quick"
    assert NUMBERS.parse(words.split())[0] == {
        "name": "y", "n": 16, "t": 0.0, "sizes": [3, 4], "dtype": "b", "quick": True,
    }  # fmt: skip
    assert NUMBERS.parse(["--quick", "no", "x"])[0] == {
        "name": "x", "n": 1, "t": None, "sizes": [1, 2], "dtype": "a", "quick": False,
    }  # fmt: skip
    assert problems_of(
        NUMBERS.parse, [f"--n={'9' * 5000}", "--t=", "--sizes=1,x,0", "--quick=2", "--dtype=c", "z"]
    ) == [
        "z: expected one of x, y",
        f"--n={'9' * 5000} must be an integer, at least 1",
        "--t= must be a number, 0, or in [0.01, 100]",
        "--sizes=x must be an integer, at least 1",
        "--sizes=0 must be at least 1",
        "--dtype=c: expected one of a, b",
        "--quick=2: expected true or false",
    ]
    assert problems_of(NUMBERS.parse, ["--n=0", "--t=inf", "x", "w", "--m=a b"]) == [
        "--m: unknown flag",
        "w: unknown flag",
        "--n=0 must be at least 1",
        "--t=inf must be finite",
    ]
    assert problems_of(NUMBERS.parse, ["--config.optim.lr", "1"]) == [
        "--config.optim.lr: there are no settings here",
        "x|y: required",
    ]


def test_rules_between_flags_are_reported_with_the_rest():
    def check(values):
        assert values == {"config": "", "workdir": "w", "restart": False}
        yield "rule"

    assert problems_of(TRAIN.parse, ["--workdir=w"], check) == ["--config: required", "rule"]


def test_the_report_s_numbers_have_ranges():
    from p2o_jax.report.__main__ import main

    assert problems_of(main, ["nowhere", "--port=99999", "--samples-mb=inf"]) == [
        "--port=99999 must lie in [0, 65,535]",
        "--samples-mb=inf must be finite",
    ]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_every_command_names_every_flag(name, capsys):
    module = importlib.import_module(f"p2o_jax.{name}")
    line = module.COMMAND_LINE
    with pytest.raises(SystemExit) as end:
        getattr(module, COMMANDS[name])(["--wrong", "-h"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m {line.program} ") and line.description in text
    for flag in line.flags.values():
        assert f"  --{flag.name}" in text
        assert len(flag.help) > 5 and flag.help[0].isupper() and not flag.help.endswith(".")
    assert ("--config.section.key=value" in text) == line.settings
    assert max(map(len, text.splitlines()[3:])) <= 140


@pytest.mark.parametrize("name", ["main", "plan", "report"])
def test_help_ends_with_exit_code_0(name):
    command = [sys.executable, "-m", f"p2o_jax.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == "" and "--help" in done.stdout


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in ("prepare", "report.__main__")])
def test_help_config_lists_every_setting_with_its_description(name, capsys):
    run = getattr(importlib.import_module(f"p2o_jax.{name}"), COMMANDS[name])
    with pytest.raises(SystemExit) as end:
        run(["--help-config"])
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for setting in settings(Config).values():
        assert f" --config.{setting.key} " in text and " ".join(setting.doc.split()) in text
    with pytest.raises(SystemExit):
        run(["--help-config", "optim"])
    text = capsys.readouterr().out
    assert "--config.optim.lr\n      float; default: 1e-06; [0, 1]\n      Peak learning" in text
    assert "--config.loss" not in text and "--config.optim.micro_rows [resumable]\n" in text


def test_help_config_of_no_section():
    (line,) = problems_of(TRAIN.parse, ["--help-config=optm"])
    assert line.startswith("--help-config=optm: no such section (did you mean optim?); there are ")


def test_help_imports_no_jax():
    for flag in ("--help", "--help-config"):
        command = [sys.executable, "-X", "importtime", "-m", "p2o_jax.main", flag]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "p2o_jax.config.schema" in imported
        assert not imported & {"jax", "numpy", "transformers", "datasets"}
    modules = ", ".join(f"p2o_jax.{name}" for name in COMMANDS)
    program = f"import sys, {modules}; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
