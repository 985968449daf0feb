"""Requests to leave, steps that hang, rewards that teach nothing."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from p2o_jax.runtime.console import Reporter
from p2o_jax.runtime.preemption import FlatRewards, Preempted, Preemption, Watchdog

VALUES = {
    "rollout/frac_truncated": 0.9,
    "reward/format": 0.1,
    "reward/frac_time_out": 0.25,
    "reward/frac_error": 0.0,
}


def run(code: str, timeout: float = 30) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_sigterm_is_raised_where_a_phase_begins_or_gets_on_and_nowhere_else():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption(30.0) as preemption:
        reporter = Reporter(enabled=False, poll=preemption.poll)
        with reporter.phase("rollout", 3) as advance:
            advance(1)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(Preempted):
                advance(1)
        with pytest.raises(Preempted), reporter.phase("update"):
            pass
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_sigterm_nothing_is_raised_and_nothing_is_left():
    import threading

    with Preemption(0.1) as preemption:
        os.kill(os.getpid(), signal.SIGWINCH)  # other signals are not ours
        time.sleep(0.2)
        preemption.poll()
    assert "preemption" not in [t.name for t in threading.enumerate()]


def test_a_program_that_cannot_be_interrupted_is_left_with_exit_code_0():
    """The main thread is in C and runs no Python, as in a long decode; the handler of a signal
    would wait for it.
    """
    start = time.monotonic()
    done = run("""
        import ctypes, os, signal, threading
        from p2o_jax.runtime.preemption import Preemption
        with Preemption(1.0) as preemption:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            libc = ctypes.CDLL(None)
            for _ in range(40):
                libc.usleep(999_999)  # begun again by ctypes after a signal, never polled
        """)
    assert (
        done.returncode == 0 and "exiting within 1 s" in done.stderr and "time is up" in done.stderr
    )
    assert time.monotonic() - start < 10


def test_code_that_holds_the_interpreter_s_lock_delays_the_end_by_no_more_than_a_second():
    """No thread of Python runs meanwhile, not the one that watches either."""
    start = time.monotonic()
    done = run("""
        import ctypes, os, subprocess
        from p2o_jax.runtime.preemption import Preemption
        with Preemption(1.0):
            command, null = f"sleep 1; kill -TERM {os.getpid()}", subprocess.DEVNULL
            subprocess.Popen(["sh", "-c", command], stdout=null, stderr=null)
            ctypes.PyDLL(None).sleep(40)  # which the signal ends
            ctypes.PyDLL(None).sleep(40)
        """)
    assert done.returncode == -signal.SIGKILL and time.monotonic() - start < 15


def test_the_clock_runs_on_after_the_run_is_left_and_its_process_does_not_end():
    """Python waits at its end for threads that compile: a run took 43 s to leave once, with a
    grace of 25.
    """
    start = time.monotonic()
    code = """
        import os, signal, threading, time
        from p2o_jax.runtime.preemption import Preempted, Preemption
        threading.Thread(target=time.sleep, args=(40,)).start()
        with Preemption(1.0) as preemption:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            preemption.poll()
    """
    done = run(code)
    assert done.returncode == 0 and "Preempted" in done.stderr and "time is up" in done.stderr
    assert time.monotonic() - start < 15


def test_a_command_leaves_while_a_program_compiles():
    start = time.monotonic()
    done = run("""
        import os, signal, threading, time
        from types import SimpleNamespace
        from p2o_jax import main
        from p2o_jax.runtime.preemption import Preemption
        from p2o_jax.rollout.program_cache import ProgramCache
        def compiled(argv):
            with Preemption(20.0) as preemption:
                lowered = lambda key: SimpleNamespace(compile=lambda: time.sleep(key))
                programs = ProgramCache(lowered)
                threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
                programs.compile((1.0, 40.0), lambda n: preemption.poll())
        main.command(compiled)
        """)
    assert (
        done.returncode == 0 and "left on SIGTERM" in done.stderr and "Traceback" not in done.stderr
    )
    assert time.monotonic() - start < 15


def test_sigterm_between_arms_is_a_request_too(tmp_path):
    done = run(
        f"""
        import os, signal, sys, time
        from p2o_jax import main
        sys.argv[1:] = ["--config", "configs/quickstart.py", "--workdir", {str(tmp_path / "run")!r}]
        main.check_arms = lambda arms: print(len(arms), flush=True)
        def train_one(cfg, workdir, poll, restart):
            poll()
            print(workdir.name, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        main.train_one = train_one
        main.command(main.main)
        """,
        timeout=120,
    )
    assert done.returncode == 0 and "left on SIGTERM" in done.stderr
    assert done.stdout.split() == ["2", "grpo"], "the second arm was not begun"


def test_the_overseer_ends_with_the_context():
    with Preemption(30.0) as preemption:
        overseer = preemption._overseer
        assert overseer.poll() is None
        os.kill(overseer.pid, signal.SIGTERM)  # as a whole process group may get it
        time.sleep(0.3)
        assert overseer.poll() is None
    assert overseer.returncode == 0


def test_the_watchdog_writes_all_stacks_when_a_step_lasts_too_long():
    code = """
        import time
        from p2o_jax.runtime.preemption import Watchdog
        watchdog = Watchdog(0.5)
        def hanging_step():
            time.sleep({seconds})
        for _ in range({steps}):
            watchdog.restart()
            hanging_step()
        watchdog.close()
    """
    stacks = run(code.format(seconds=0.8, steps=1)).stderr
    assert "Timeout" in stacks and "in hanging_step" in stacks
    assert run(code.format(seconds=0.2, steps=4)).stderr == ""
    assert Watchdog(0.0).restart() is None


def test_equal_rewards_are_reported_less_and_less_often():
    flat = FlatRewards(3)
    warnings = [flat.notice(0.0, 0.0, VALUES) for _ in range(13)]
    assert [step for step, line in enumerate(warnings, start=1) if line] == [3, 6, 12]
    assert "last 6 steps (now 0)" in warnings[5]
    assert all(
        part in warnings[2]
        for part in (
            "truncated responses: 0.90",
            "closed box: 0.10",
            "in time: 0.25",
            "unreadable reference answer: 0.00",
        )
    )
    assert not flat.notice(0.0, 1.0, VALUES)
    assert [bool(flat.notice(1.0, 1.0, VALUES)) for _ in range(3)] == [
        False,
        False,
        True,
    ], "counted anew after a step with a difference"
    assert not any(FlatRewards(0).notice(0.0, 0.0, VALUES) for _ in range(50))
