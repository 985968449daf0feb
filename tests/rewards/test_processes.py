"""Processes that a reward function starts do not outlive its worker, and workers get no keys."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from p2o_jax import config
from p2o_jax.rewards import pool
from p2o_jax.rewards.pool import Pool
from p2o_jax.rewards.scorer import Scorer
from p2o_jax.runtime.subprocesses import environment
from p2o_jax.types import Question

ROOT = Path(__file__).parents[2]
REWARD = """
    import os, signal, subprocess, sys, time

    DAEMON = (
        "import os, time; os.fork() and os._exit(0); os.setsid(); "
        "print(os.getpid(), flush=True); time.sleep(60)"
    )

    def start():
        sleep = lambda **options: subprocess.Popen(["sleep", "60"], **options).pid
        output = {"stdout": subprocess.PIPE, "text": True}
        nested = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], **output)
        daemon = subprocess.Popen([sys.executable, "-c", DAEMON], **output)
        pids = [os.getpid(), sleep(), sleep(start_new_session=True), nested.pid]
        return [*pids, int(nested.stdout.readline()), int(daemon.stdout.readline())]

    def reward(messages, response, answer, meta):
        if response == "environment":
            return 1.0, "|".join(sorted(os.environ))
        if response == "terminate":
            child = subprocess.Popen(["sleep", "60"])
            child.terminate()
            return 1.0, str(child.wait(5))
        pids = start()
        with open(meta["file"], "a") as f:
            f.write(" ".join(map(str, pids)) + "\\n")
        if response == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if response == "kill the guardian":
            os.kill(os.getppid(), signal.SIGKILL)
        if response != "leave":
            time.sleep(60)
        return 1.0
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="adoption of orphans is Linux's")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "starts.py"
    path.write_text(textwrap.dedent(REWARD))
    return path


def judge(scorer, response, tmp_path):
    question = Question(
        "q", ({"role": "user", "content": "?"},), "", "", {"file": str(tmp_path / "pids")}
    )
    return scorer.judge([response], [question])[0]


def running(pids):
    """Those of the processes that are neither gone nor zombies."""
    alive = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        alive += [pid] if state != "Z" else []
    return alive


def started(tmp_path):
    """The processes of every call: the worker; plain, in a session of its own, a shell and its
    child, a daemon.
    """
    calls = [
        [int(pid) for pid in line.split()] for line in (tmp_path / "pids").read_text().splitlines()
    ]
    assert calls and all(len(pids) == 6 for pids in calls)
    return [pid for pids in calls for pid in pids]


def wait_until(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    assert holds()


@linux
@pytest.mark.parametrize(("response", "status"), [("hang", "time_out"), ("die", "error")])
def test_a_worker_that_hangs_or_dies_takes_all_that_it_started_along(
    file, tmp_path, response, status
):
    with Scorer(config.RewardConfig(fn=f"{file}:reward", workers=1, timeout_s=2.0)) as scorer:
        assert judge(scorer, response, tmp_path).status == status
        assert running(started(tmp_path)) == []


@linux
def test_close_ends_what_a_successful_call_left(file, tmp_path):
    with Scorer(config.RewardConfig(fn=f"{file}:reward", workers=1, timeout_s=20.0)) as scorer:
        assert judge(scorer, "leave", tmp_path).status == "correct"
        # a helper of the module's may serve the next call
        assert len(running(started(tmp_path))) == 6
    assert running(started(tmp_path)) == []


@linux
def test_without_its_guardian_a_worker_ends_and_the_pool_kills_the_group(file, tmp_path):
    with Scorer(config.RewardConfig(fn=f"{file}:reward", workers=1, timeout_s=20.0)) as scorer:
        assert judge(scorer, "kill the guardian", tmp_path).status == "error"
        pids = started(tmp_path)
        assert len(pids) == 12  # the second attempt, too
        # in sessions of their own: out of reach then, as the guardian's docstring says
        away = {
            *pids[2::6],
            *pids[5::6],
        }
        wait_until(lambda: set(running(pids)) <= away)
    for pid in running(away):
        os.kill(pid, signal.SIGKILL)


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_or_interrupted_parent_leaves_nothing(file, tmp_path, number):
    code = f"""
        import signal
        from p2o_jax import config
        from p2o_jax.types import Question
        from p2o_jax.rewards.scorer import Scorer
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        cfg = config.RewardConfig(fn="{file}:reward", workers=1, timeout_s=60.0)
        with Scorer(cfg) as scorer:
            scorer.judge(["hang"], [Question("q", (), "", "", {{"file": "{tmp_path / "pids"}"}})])
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        (tmp_path / "pids").touch()
        wait_until(
            lambda: parent.poll() is not None or (tmp_path / "pids").read_text().endswith("\n")
        )
        assert len(running(started(tmp_path))) == 6
    finally:
        parent.send_signal(number)
        parent.wait(20)
    wait_until(lambda: running(started(tmp_path)) == [])


def test_a_pool_whose_guardians_are_stopped_ends_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(pool, "END_TIMEOUT_S", 0.2)
    with Pool(1, 20.0, "p2o_jax.rewards.own:p2o_jax.rewards.examples:pattern") as stopped:
        assert stopped.run([("",)]) == [""]
        (worker,) = stopped._workers
        os.kill(worker.process.pid, signal.SIGSTOP)
    assert worker.process.returncode == -signal.SIGKILL


def test_workers_get_named_variables_and_no_others_with_keys(file, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv("JUDGE_URL", "http://localhost:1")
    monkeypatch.setenv("LC_TIME", "C")
    seen = {}
    for env in ((), ("JUDGE_URL",)):
        with Scorer(config.RewardConfig(fn=f"{file}:reward", env=env, workers=1)) as scorer:
            seen[env] = set(judge(scorer, "environment", tmp_path).note.split("|"))
    assert {"PATH", "HOME", "LC_TIME", "OMP_NUM_THREADS", "PYTHONPATH", "JAX_PLATFORMS"} <= seen[()]
    assert not {name for name in seen[()] if "KEY" in name or "TOKEN" in name or "URL" in name}
    assert seen["JUDGE_URL",] - seen[()] == {"JUDGE_URL"}
    assert (
        "OPENAI_API_KEY" not in environment()
        and environment(["OPENAI_API_KEY"])["OPENAI_API_KEY"] == "secret"
    )


def test_a_named_variable_that_is_not_set_is_reported(file, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with Scorer(
        config.RewardConfig(fn=f"{file}:reward", env=("NO_SUCH_KEY",), workers=1)
    ) as scorer:
        assert scorer.problems() == [
            "config.reward.env: the environment variable NO_SUCH_KEY is not set"
        ]
        assert scorer.counts["started"] == 0


def test_children_of_a_reward_can_be_terminated(file, tmp_path):
    """Workers outlive a SIGTERM sent to all processes of a machine; the programs that they start
    must not inherit that.
    """
    with Scorer(config.RewardConfig(fn=f"{file}:reward", workers=1, timeout_s=20.0)) as scorer:
        assert judge(scorer, "terminate", tmp_path).note == str(-signal.SIGTERM)
        (worker,) = scorer._functions._workers
        os.kill(worker.process.pid, signal.SIGTERM)
        assert (
            judge(scorer, "environment", tmp_path).status == "correct"
            and scorer.counts["started"] == 1
        )


def test_workers_import_the_package_that_they_belong_to(monkeypatch, tmp_path):
    (tmp_path / "p2o_jax").mkdir()
    (tmp_path / "p2o_jax" / "__init__.py").write_text("raise RuntimeError('another p2o_jax')")
    (tmp_path / "planted_path.py").write_text(
        "import json, sys, p2o_jax\ndef judge(): return json.dumps([p2o_jax.__file__, sys.path])"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with Pool(1, 20.0, "planted_path:judge") as one:
        where, path = json.loads(one.run([()])[0])
    assert where == str(Path(pool.__file__).parents[1] / "__init__.py")
    assert str(Path(pool.__file__).parent) not in path
