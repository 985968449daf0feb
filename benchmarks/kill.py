"""Kills runs at random moments and checks their results: `python -m benchmarks.kill [--runs 60]`.

A small but complete run (three epochs, two prompt phases, updates, evaluations, asynchronous
checkpoints) is killed with SIGKILL, restarted, killed again, and finally left to finish. Every
record except times, and every bit of the last checkpoint, must equal those of an uninterrupted run.

Half of the moments are uniform over the run; the others target each phase in turn. Some runs
pretrain their own base model and are killed meanwhile. `--runs` is the number of kills.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.report import Target
from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command

ROOT = Path(__file__).parent.parent
TARGETS = {
    "every run ends the same": Target("frac_identical", ">=", 1.0),
    "every phase is hit": Target("phases_missed", "<=", 0),
}
SETTINGS = {
    "world.steps": 150,
    "world.hard_per_family": 1,
    "world.easy_per_family": 10,
    "world.heldout_per_family": 4,
    "train.epochs": 3,
    "rollout.questions": 8,
    "optim.minibatch_questions": 4,
    "loss.entropy_coef": 0.01,
    "gepa.min_hard": 4,
    "gepa.max_metric_calls": 60,
    "gepa.acceptance": "margin",
    "gepa.acceptance_margin": 0,
    "gepa.temperature": 1.0,
    "gepa.filter_replies": "false",
    "eval.every_steps": 2,
    "checkpoint.every_steps": 2,
    "checkpoint.keep_every": 4,
}
PRETRAINING = {"world.steps": 40, "train.epochs": 1}  # settings of runs killed in pretraining
PHASES = (
    "start",
    "rollout",
    "reward",
    "score",
    "update",
    "gepa",
    "eval",
    "checkpoint",
    "resume",
    "epoch",
    "end",
    "pretraining",
)
ONCE = ("start", "resume", "epoch", "end")  # phases that a process may reach only once
KILLS_PER_RUN = 4
PAUSE_S = 0.005  # around phases that are shorter than the delivery of a signal
# Environment variable: the point at which the run signals itself.
AIM = "P2O_BENCHMARK_AIM"
SIGNALLED = "signalled"
MARK = "phase: "  # begins the lines about phases on the run's standard output
RECORDS = ("metrics", "samples", "templates", "evaluations", "questions")


def child(argv: Sequence[str]) -> None:
    """Runs the training command, and prints a line whenever a phase begins or ends."""
    from p2o_jax import main
    from p2o_jax.runtime import console
    from p2o_jax.toy_world import pretrain
    from p2o_jax.tracking import checkpoint, recorder

    seen, aim = Counter[str](), json.loads(os.environ.get(AIM, "null"))

    def strike() -> None:
        os.write(1, f"{MARK}{SIGNALLED}\n".encode())
        os.kill(os.getpid(), aim["signal"])

    def say(phase: str) -> None:
        os.write(1, f"{MARK}{phase}\n".encode())
        seen[phase] += 1
        if aim and phase == aim["phase"] and seen[phase] == aim["number"]:
            threading.Timer(aim["delay"], strike).start() if aim["delay"] else strike()

    def announced(owner: Any, name: str, phase: str) -> None:
        inner = getattr(owner, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            say(phase)
            time.sleep(PAUSE_S)
            try:
                return inner(*args, **kwargs)
            finally:
                time.sleep(PAUSE_S)
                say("between")

        setattr(owner, name, outer)

    phase_of = console.Reporter.phase

    def phase(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        say(name)
        return phase_of(self, name, *args, **kwargs)

    console.Reporter.phase = phase
    announced(checkpoint.Checkpoints, "save", "checkpoint")
    announced(checkpoint.Checkpoints, "latest", "resume")
    announced(recorder.Recorder, "search", "epoch")
    announced(checkpoint.Checkpoints, "close", "end")
    announced(pretrain, "pretrain", "pretraining")
    announced(pretrain, "_save", "pretraining")
    say("start")
    sys.argv[1:] = argv
    main.command(main.main)


class Run:
    """A training process and its current phase.

    With a target, it is signalled `delay` seconds after the `number`-th beginning of `phase`.
    """

    def __init__(
        self,
        workdir: Path,
        settings: Mapping[str, Any],
        phase: str = "",
        number: int = 1,
        delay: float = 0.0,
        sign: int = signal.SIGKILL,
    ):
        flags = [f"--config.{key}={value}" for key, value in settings.items()]
        arguments = [
            sys.executable,
            "-m",
            "benchmarks.kill",
            "child",
            "--config",
            "configs/smoke.py",
            "--workdir",
            str(workdir),
            *flags,
        ]
        aim = json.dumps(
            {"phase": phase, "number": number, "delay": delay, "signal": sign} if phase else None
        )
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", AIM: aim}
        self.workdir = workdir
        self.log = open(workdir.with_suffix(".log"), "ab")  # noqa: SIM115  # closed in `wait`
        self.process = subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=self.log
        )
        self.phase = self.last = "start"  # `last`: the last phase that the run has reported
        self._changed = threading.Condition()
        self._seen: Counter[str] = Counter()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            text = line.decode().strip()
            if not text.startswith(MARK):  # the run's own output
                continue
            with self._changed:
                self.phase = text.removeprefix(MARK)
                self.last = self.last if self.phase == SIGNALLED else self.phase
                self._seen[self.phase] += 1
                self._changed.notify_all()
        with self._changed:
            self.phase = "ended"
            self._changed.notify_all()

    def kill_after(self, seconds: float) -> str:
        """Kills the run after `seconds`.

        Returns the phase that is hit, or "ended" if the run was faster.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.phase == "ended", seconds)
        self.process.kill()
        return self.hit()

    def stop(self) -> tuple[int, float]:
        """Waits for the exit after the run's own SIGTERM.

        Returns the exit code and the seconds it took.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._seen[SIGNALLED] or self.phase == "ended", 600)
        begin = time.monotonic()
        return self.wait(), time.monotonic() - begin

    def hit(self) -> str:
        """The phase that SIGKILL has hit, with "checkpoint" if one was being written; or "ended".

        Raises:
            ConfigError: the run failed.
        """
        code = self.wait()
        if code not in (0, -signal.SIGKILL):
            raise ConfigError(
                f"{self.workdir.with_suffix('.log')}: the run failed with exit code {code}"
            )
        if code == 0:
            return "ended"
        half_written = self.last != "checkpoint" and list(self.workdir.glob("checkpoints/*-tmp"))
        return f"{self.last} + checkpoint" if half_written else self.last

    def wait(self) -> int:
        """Waits for the end, and returns the exit code."""
        code = self.process.wait(timeout=600)
        self._reader.join()
        self.log.close()
        return code


COMMAND_LINE = CommandLine(
    "benchmarks.kill",
    __doc__,
    Flag("runs", "Number of kills", 60, kind=int, within=COUNT),
    Flag("kills-per-run", "Kills per run", KILLS_PER_RUN, kind=int, within=COUNT),
    Flag("seed", "Seed of the moments", "0"),
    Flag("folder", "Empty folder to keep the runs in (default: a temporary one)", metavar="DIR"),
    Flag("dynamic", "Value of config.rollout.dynamic_sampling", False, kind=bool),
)


def run(argv: Sequence[str]) -> None:
    """Runs and reports.

    Raises:
        ConfigError: the flags are invalid, or an uninterrupted run fails.
    """
    flags, overrides = COMMAND_LINE.parse(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = report.own_folder(flags["folder"], temporary)
        settings = {
            **SETTINGS,
            "rollout.dynamic_sampling": str(flags["dynamic"]).lower(),
            **dict(overrides),
        }
        figures = measure(
            folder,
            settings,
            flags["runs"],
            flags["kills-per-run"],
            random.Random(flags["seed"]),
        )
    report.finish("kill", figures, TARGETS)


def measure(
    folder: Path, settings: Mapping[str, Any], kills: int, per_run: int, rng: random.Random
) -> dict[str, Any]:
    """The figures of a number of kills.

    Args:
        folder: where runs are written.
        settings: settings of the runs.
        kills: the number of kills.
        per_run: kills per run.
        rng: draws the moments.
    """
    settings = {
        **settings,
        "train.compile_cache": folder / "compiled",
        "world.cache_dir": folder / "world",
    }
    pretraining = {**settings, **PRETRAINING}
    whole, seconds = uninterrupted(folder, "whole", settings)
    base, _ = uninterrupted(folder, "base", pretraining)
    hits: Counter[str] = Counter()
    same, done, number = 0, 0, 0
    aims = [phase for phase in PHASES if phase != "pretraining"]
    begin = time.monotonic()
    while done < kills:
        of_base = number % 6 == 5 or (
            kills < 6 * per_run and number == 1
        )  # one run in six pretrains
        workdir, own = folder / f"run{number}", pretraining if of_base else settings
        own = {**own, "world.cache_dir": workdir.with_suffix(".world")} if of_base else own
        phases, strikes = [], 0
        while strikes < min(per_run, kills - done):
            if of_base and strikes < 2:
                phase = Run(
                    workdir,
                    own,
                    "pretraining",
                    1 + strikes,
                    rng.uniform(0, 3.0 if strikes == 0 else 0.1),
                ).hit()
            elif (done + strikes) % 2:
                aim = aims[(done + strikes) // 2 % len(aims)]
                phase = Run(
                    workdir,
                    own,
                    aim,
                    1 if aim in ONCE else rng.randint(1, 3),
                    rng.choice((0.0, rng.uniform(0, 0.1))),
                ).hit()
            else:
                phase = Run(workdir, own).kill_after(rng.uniform(0, seconds))
            if phase == "ended":  # before the signal
                break
            phases.append(phase)
            strikes += 1
        if Run(workdir, own).wait():
            raise ConfigError(
                f"{workdir.with_suffix('.log')}: a run that had been killed in {phases} failed"
            )
        wrong = differences(base if of_base else whole, workdir)
        hits.update(name for phase in phases for name in phase.split(" + "))
        done += strikes
        same += strikes if not wrong else 0
        number += 1
        print(
            f"{done}/{kills}  killed in {', '.join(phases)}: {'; '.join(wrong) or 'identical'}",
            file=sys.stderr,
            flush=True,
        )
        if not wrong:
            shutil.rmtree(workdir)
    for phase in (*PHASES, "between"):
        print(f"killed in {phase}: {hits[phase]}", file=sys.stderr)
    return {
        "kills": done,
        "identical": same,
        "frac_identical": same / done,
        "runs": number,
        "phases": dict(hits),
        "phases_missed": sum(not hits[phase] for phase in PHASES),
        "seconds_uninterrupted": round(seconds, 1),
        "seconds": round(time.monotonic() - begin, 1),
    }


def uninterrupted(folder: Path, name: str, settings: Mapping[str, Any]) -> tuple[Path, float]:
    """Returns the workdir of an uninterrupted run, and the seconds that a second such run takes.

    The second run finds compiled programs and base model in the cache.
    """
    for workdir in (folder / f"{name}_first", folder / name):
        begin = time.monotonic()
        if Run(workdir, settings).wait():
            raise ConfigError(f"{workdir.with_suffix('.log')}: an uninterrupted run failed")
    return folder / name, time.monotonic() - begin


def differences(whole: Path, other: Path) -> list[str]:
    """The differences between two finished runs, except times.

    Compares records, journals, results, and the bits of the last checkpoint.
    """
    differing = [
        name for name in RECORDS if _rows(whole / f"{name}.jsonl") != _rows(other / f"{name}.jsonl")
    ]
    journals = _names(whole / "gepa")
    if journals != _names(other / "gepa"):
        differing.append("files of gepa/")
    differing += [
        f"gepa/{name}"
        for name in journals
        if _rows(whole / "gepa" / name) != _rows(other / "gepa" / name)
    ]
    differing += (
        ["result.json"]
        if _untimed(_json(whole / "result.json")) != _untimed(_json(other / "result.json"))
        else []
    )
    mine, theirs = (_last_state(folder) for folder in (whole, other))
    differing += ["checkpoints"] if mine[0] != theirs[0] else []
    differing += ["host state"] if mine[1] != theirs[1] else []
    return differing + [
        f"weight {name}" for name in mine[2] if mine[2][name].tobytes() != theirs[2][name].tobytes()
    ]


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*"))


def _rows(path: Path) -> list[Any]:
    return [_untimed(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _untimed(value: Any) -> Any:
    """The value without entries that depend on the clock, and without digests of such entries."""
    if not isinstance(value, dict):
        return [_untimed(v) for v in value] if isinstance(value, list) else value
    timed = ("time/", "perf/", "seconds")
    return {
        k: _untimed(v)
        for k, v in value.items()
        if not k.startswith(timed) and k not in ("check", "digest")
    }


def _last_state(workdir: Path) -> tuple[list[int], Any, dict[str, np.ndarray]]:
    """The ticks that have a checkpoint, and the host state and arrays of the newest one."""
    import jax
    import orbax.checkpoint as ocp

    where = workdir / "checkpoints"
    ticks = sorted(int(p.name) for p in where.iterdir() if p.name.isdecimal())
    newest = (where / str(ticks[-1])).absolute()
    handler = ocp.PyTreeCheckpointHandler()
    on_host = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
        handler.metadata(newest / "learner").tree,
    )
    arrays = ocp.Checkpointer(handler).restore(
        newest / "learner", args=ocp.args.PyTreeRestore(restore_args=on_host)
    )
    host = ocp.Checkpointer(ocp.JsonCheckpointHandler()).restore(newest / "host")
    return (
        ticks,
        _untimed(host),
        {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(arrays)},
    )


if __name__ == "__main__":
    child(sys.argv[2:]) if sys.argv[1:2] == ["child"] else command(run)
