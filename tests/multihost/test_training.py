"""The real command as two or four processes of one mesh, with a reflecting endpoint: killed, asked
to leave, resumed by as many and by fewer.

The chain: the last process is killed in the second step; the next start leaves on SIGTERM in the
prompt phase, with a checkpoint that all processes wrote; as many processes and fewer resume it. In
the end all must be what one undisturbed process with one device did; several processes have eight
together. Four processes are slow.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest

from benchmarks import kill
from p2o_jax.runtime import liveness

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "tests" / "gepa"))
from fake_endpoint import Endpoint  # noqa: E402  # tests are no package

KEY = "sk-of-process-0"
# The learning rate is next to nothing: sums have another order on other meshes, and moved params
# would turn a sampled token now and then.
ONE_DEVICE = {0: {"mesh.cpu_devices": 1}}
TIME_OUT_S = 20.0  # within which the others of a process that is killed have ended
SETTINGS = {
    "model.path": ROOT / "tests/golden/hf/qwen3_tied",
    "data.prompt_template": "{question}",
    "data.max_prompt_tokens": 120,
    "rollout.questions": 8,
    "rollout.group_size": 4,
    "rollout.max_new_tokens": 16,
    "rollout.prompt_buckets": "(160,)",
    "rollout.slots": 16,
    "rollout.min_slots": 0,
    "rollout.prompt_cache_tokens": 8192,
    "rollout.prefill_tokens": 512,
    "optim.micro_rows": 8,
    "optim.row_tokens": 192,
    "optim.minibatch_questions": 8,
    "optim.lr": 1e-8,
    "loss.entropy_coef": 0.01,
    "reward.fn": "p2o_jax.rewards.examples:pattern",
    "reward.workers": 1,
    "gepa.schedule": "every_epoch",
    "gepa.min_hard": 4,
    "gepa.dev_size": 4,
    "gepa.max_metric_calls": 80,
    "gepa.temperature": 1.0,
    "gepa.acceptance": "margin",
    "gepa.acceptance_margin": 0,
    "gepa.reflector": "api",
    "api.model": "teacher",
    "api.key_env": "('MY_KEY',)",
    "train.seed": 3,
    "train.epochs": 2,
    "train.num_samples_logged": 32,
    "eval.every_steps": 0,
    "checkpoint.every_steps": 1,
}


class Group:
    """Training by `count` processes, or those of them in `only`, with eight devices together.

    A process with an aim is signalled as `benchmarks.kill` says; one may have settings of its own.
    """

    def __init__(
        self,
        workdir: Path,
        count: int,
        settings: dict,
        aims: Mapping[int, dict] = MappingProxyType({}),
        own: Mapping[int, dict] = MappingProxyType({}),
        only: Sequence[int] = (),
    ):
        env = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "MY_KEY")}
        env |= {
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "NPROC": "32",
        }
        if count > 1:
            env |= {
                "JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}",
                "JAX_NUM_PROCESSES": str(count),
            }
        self.logs, self.processes = [], []
        for i in only or range(count):
            flags = [
                f"--config.{k}={v}"
                for k, v in {
                    **settings,
                    "mesh.cpu_devices": 8 // count,
                    **own.get(i, {}),
                }.items()
            ]
            arguments = [
                sys.executable,
                "-m",
                "tests.multihost.child",
                "--config=configs/smoke.py",
                f"--workdir={workdir}",
                *flags,
            ]
            extra = {"JAX_PROCESS_ID": str(i), kill.AIM: json.dumps(aims.get(i))} | (
                {"MY_KEY": KEY} if i == 0 else {}
            )
            self.logs.append(workdir.with_suffix(f".{i}_of_{count}.log"))
            with open(self.logs[-1], "wb") as f:
                self.processes.append(
                    subprocess.Popen(
                        arguments, cwd=ROOT, env=env | extra, stdout=subprocess.DEVNULL, stderr=f
                    )
                )

    def wait(self, timeout: float = 1200.0) -> list[int]:
        """The exit codes."""
        end = time.monotonic() + timeout
        try:
            return [process.wait(max(end - time.monotonic(), 0.1)) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def output(self) -> list[str]:
        return [log.read_text(encoding="utf-8") for log in self.logs]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def aim(phase: str, number: int, sign: int) -> dict:
    return {"phase": phase, "number": number, "delay": 0.0, "signal": sign}


def rows(workdir: Path, name: str) -> list[dict]:
    return [
        json.loads(line)
        for line in (workdir / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def same_run(whole: Path, workdir: Path) -> None:
    """The same texts, and metrics to 1e-3; something was learnt, under templates, too."""
    for name in ("samples", "questions", "templates"):
        ours, theirs = texts(workdir, name), texts(whole, name)
        assert ours == theirs and ours
    measured, expected = (untimed(w) for w in (workdir, whole))
    assert len(measured) == len(expected) == 5
    for ours, theirs in zip(measured, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    steps = [row for row in measured if "train/loss" in row]
    assert all(row["train/grad_norm"] > 0 for row in steps) and any(
        row["rollout/frac_templated"] > 0 for row in steps
    )


def texts(workdir: Path, name: str) -> list[dict]:
    """The rows without numbers that depend on the order of sums."""
    return [
        {k: v for k, v in row.items() if isinstance(v, str | int | list)}
        for row in rows(workdir, name)
    ]


def untimed(workdir: Path) -> list[dict]:
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))}
        for row in rows(workdir, "metrics")
    ]


@pytest.fixture(scope="module")
def endpoint():
    with Endpoint(reply=lambda prompt: f"```\nthink of {len(prompt)} letters\n```") as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def settings(tmp_path_factory, endpoint, compiled):
    shared = tmp_path_factory.mktemp("shared")
    letters = "abpdhnbpadpbhapd"
    questions = [
        {"question": f"What is {i} + {i}?", "answer": f".*{letter}.*"}
        for i, letter in enumerate(letters)
    ]
    (shared / "questions.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    more = {
        "data.path": shared / "questions.jsonl",
        "train.compile_cache": compiled,
        "api.base_url": endpoint.url,
    }
    return {**SETTINGS, **more}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, settings, endpoint):
    """The workdir of one process, and the requests that it made."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    group = Group(workdir, 1, settings, own=ONE_DEVICE)
    assert group.wait() == [0], group.output()[0][-3000:]
    return workdir, sorted(body["messages"][0]["content"] for body in endpoint.requests)


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def count(request):
    """The number of processes."""
    return request.param


@pytest.fixture(scope="module")
def killed(tmp_path_factory, settings, alone, count):
    """A run of several processes, of which the last was killed in the second step; and how long the
    others took to end.
    """
    workdir = tmp_path_factory.mktemp("together") / "run"
    group = Group(workdir, count, settings, {count - 1: aim("rollout", 2, signal.SIGKILL)})
    group.processes[-1].wait(1200)
    begin = time.monotonic()
    codes = group.wait()
    return workdir, codes, time.monotonic() - begin, group.output()


@pytest.fixture(scope="module")
def left(killed, settings, endpoint, count):
    """The same run, resumed and left in the prompt phase, after SIGTERM to one process; and copies
    of it.
    """
    endpoint.requests.clear()
    group = Group(killed[0], count, settings, {count // 2: aim("gepa", 3, signal.SIGTERM)})
    codes = group.wait()
    copies = {
        fewer: shutil.copytree(killed[0], killed[0].with_name(f"by_{fewer}")) for fewer in (2, 1)
    }
    return killed[0], codes, group.output(), copies


def go_on(workdir: Path, count: int, settings: dict) -> None:
    """Brings the run that was left to its end, by `count` processes."""
    group = Group(workdir, count, settings, own=ONE_DEVICE if count == 1 else {})
    codes = group.wait()
    assert codes == [0] * count, "\n".join(text[-2000:] for text in group.output())
    assert f"resuming {workdir} at step 2, next: prompts" in group.output()[0]
    assert all("step 4/4" not in text for text in group.output()[1:]), "only process 0 reports"


def test_a_killed_process_ends_the_others_which_name_it(killed, count):
    workdir, codes, seconds, output = killed
    assert codes == [liveness.GONE] * (count - 1) + [-signal.SIGKILL], "\n".join(
        text[-2000:] for text in output
    )
    assert seconds < TIME_OUT_S
    for text in output[:-1]:
        (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
        assert (
            line == f"error: process {count - 1} ({socket.gethostname()}) is gone;"
            " the same command continues"
            " from the last checkpoint"
        )
        assert "Traceback" not in text


def test_sigterm_to_one_process_makes_all_leave_with_a_checkpoint(left, count):
    workdir, codes, output, _ = left
    assert codes == [0] * count, "\n".join(text[-2000:] for text in output)
    assert all("left on SIGTERM" in text for text in output)
    saving = ["SIGTERM: saving" in text for text in output]
    assert saving == [i == count // 2 for i in range(count)]
    assert (workdir / "checkpoints" / "2").exists() and "gepa iteration 2" not in output[0]


def test_they_go_on_to_what_one_does_and_process_0_alone_asks_the_endpoint(
    alone, left, settings, endpoint, count
):
    """The key is in the environment of process 0 only: another that asked would end with an error.
    No reply is asked for twice.
    """
    go_on(left[0], count, settings)
    same_run(alone[0], left[0])
    assert (
        sorted(body["messages"][0]["content"] for body in endpoint.requests) == alone[1]
        and len(alone[1]) > 1
    )
    assert set(endpoint.keys) == {f"Bearer {KEY}"}


@pytest.mark.parametrize("fewer", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_fewer_processes_go_on_from_a_checkpoint_of_more(alone, left, settings, fewer):
    go_on(left[3][fewer], fewer, settings)
    same_run(alone[0], left[3][fewer])


def test_a_process_that_never_comes_is_told_by_the_one_that_has(tmp_path, settings):
    group = Group(tmp_path / "run", 4, {**settings, "mesh.start_s": 2}, only=(0,))
    assert group.wait() == [liveness.GONE]
    (line,) = [line for line in group.output()[0].splitlines() if line.startswith("error: ")]
    expected = (
        "not all of 4 processes have started within 2 s: no sign of 1, 2, 3; started: process 0"
        f" ({socket.gethostname()})"
    )
    assert line == f"error: {expected}" and not (tmp_path / "run").exists()


def test_a_checkpoint_folder_that_is_not_shared(tmp_path, settings):
    group = Group(tmp_path / "run", 2, settings, own={1: {"checkpoint.path": tmp_path / "own"}})
    assert group.wait() == [2, 2]
    assert all("not all processes see the same folder" in text for text in group.output())
    assert not list(tmp_path.glob("*/note-*"))


@pytest.mark.slow
def test_a_process_killed_in_the_prompt_phase_and_sigterm_to_all(alone, tmp_path, settings):
    """Killed in GEPA; then all are asked to leave in an update; then the run ends as it would
    have.
    """
    workdir = tmp_path / "run"
    group = Group(workdir, 4, settings, {3: aim("gepa", 3, signal.SIGKILL)})
    assert group.wait() == [liveness.GONE] * 3 + [-signal.SIGKILL]
    assert all(f"process 3 ({socket.gethostname()}) is gone" in text for text in group.output()[:3])
    group = Group(workdir, 4, settings, dict.fromkeys(range(4), aim("update", 1, signal.SIGTERM)))
    assert group.wait() == [0] * 4
    assert all("SIGTERM: saving" in text and "left on SIGTERM" in text for text in group.output())
    assert Group(workdir, 4, settings).wait() == [0] * 4
    same_run(alone[0], workdir)


@pytest.mark.slow
def test_two_processes_pretrain_reflect_and_evaluate_as_one_does(tmp_path):
    """The built-in world, whose base model two processes make together; and its export."""
    settings = {
        "world.steps": 30,
        "world.cache_dir": tmp_path / "world",
        "train.compile_cache": tmp_path / "compiled",
        "gepa.max_metric_calls": 30,
        "eval.every_steps": 4,
        "rollout.min_slots": 0,
    }
    workdirs = tmp_path / "by_2", tmp_path / "by_1"
    for count, workdir in zip((2, 1), workdirs, strict=True):
        group = Group(workdir, count, settings)
        assert group.wait() == [0] * count, "\n".join(text[-2000:] for text in group.output())
    for name in ("samples", "questions", "evaluations"):
        assert texts(workdirs[0], name) == texts(workdirs[1], name)
    for ours, theirs in zip(*map(untimed, workdirs), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    command = [
        sys.executable,
        "-m",
        "p2o_jax.export",
        f"--workdir={workdirs[0]}",
        f"--out={tmp_path}/out",
        "--config.mesh.cpu_devices=1",
    ]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert list((tmp_path / "out").glob("*.safetensors"))
