"""One run directory, one run: of many starts one wins, a kill leaves no lock that counts, and
another host's lock stays.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2o_jax import main
from p2o_jax.config import ConfigError
from p2o_jax.runtime import run_lock
from p2o_jax.startup import run_directory

ROOT = Path(__file__).parents[2]
HOLD = """
import sys
from pathlib import Path
from p2o_jax.runtime.run_lock import Lock
Lock(Path(sys.argv[1]))
print('held', flush=True)
sys.stdin.read()
"""
TRY = """
import sys
from pathlib import Path
from p2o_jax.runtime.run_lock import Lock, LockHeld
sys.stdin.readline()
try:
    Lock(Path(sys.argv[1]))
except LockHeld:
    print('refused', flush=True)
else:
    print('held', flush=True)
sys.stdin.read()
"""


def process(folder: Path, code: str = HOLD) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed(folder: Path) -> int:
    """The id of a process that was killed while it held the folder."""
    holder = process(folder)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (folder / run_lock.NAME).exists()
    return holder.pid


def write(folder: Path, **changes) -> None:
    holder = {
        "host": socket.gethostname(),
        "boot": "of another kernel",
        "pid": os.getpid(),
        "started": "2026-11-24T09:00:00+00:00",
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / run_lock.NAME).write_text(json.dumps(holder))


def outcome(folder: Path) -> run_lock.Lock | None:
    try:
        return run_lock.Lock(folder)
    except run_lock.LockHeld:
        return None


def test_a_released_lock_leaves_nothing(tmp_path):
    with run_lock.Lock(tmp_path / "a" / "b"):
        assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [run_lock.NAME]
    assert list(tmp_path.iterdir()) == []
    with run_lock.Lock(tmp_path / "a"):
        (tmp_path / "a" / "mine").write_text("x")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["mine"]


def test_the_second_is_refused_with_the_name_of_the_first(tmp_path):
    holder = process(tmp_path)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(
        run_lock.LockHeld,
        match=(
            rf"process {holder.pid} on {re.escape(socket.gethostname())} .* since"
            r" \d{4}-\d\d-\d\dT.*: wait"
        ),
    ):
        run_lock.Lock(tmp_path)
    holder.communicate()  # ends
    run_lock.Lock(tmp_path).release()


@pytest.mark.parametrize("stale", [False, True])
def test_of_fifty_starts_at_the_same_moment_one_wins(tmp_path, stale):
    if stale:
        killed(tmp_path)
    together = threading.Barrier(50)

    def start(_) -> run_lock.Lock | None:
        together.wait()
        return outcome(tmp_path)

    for _ in range(3):
        with ThreadPoolExecutor(50) as pool:
            locks = [lock for lock in pool.map(start, range(50)) if lock]
        assert len(locks) == 1
        assert [p.name for p in tmp_path.iterdir()] == [run_lock.NAME]
        locks[0].release()
        if stale:
            write(tmp_path)  # of this process, as its pid says; but it does not hold it


@pytest.mark.parametrize("stale", [False, True])
def test_of_several_processes_one_wins(tmp_path, stale):
    if stale:
        killed(tmp_path)
    starts = [process(tmp_path, TRY) for _ in range(6)]
    for start in starts:
        start.stdin.write("go\n")
        start.stdin.flush()
    assert sorted(start.stdout.readline() for start in starts) == ["held\n"] + 5 * ["refused\n"]
    for start in starts:
        start.communicate()


def test_a_process_id_in_use_again_does_not_count(tmp_path):
    write(tmp_path, pid=os.getpid())
    with run_lock.Lock(tmp_path):
        assert (
            json.loads((tmp_path / run_lock.NAME).read_text())["started"]
            != "2026-11-24T09:00:00+00:00"
        )


def test_a_container_with_another_name_on_the_same_kernel(tmp_path, monkeypatch):
    """Its lock counts as long as its process lives, and no longer."""
    holder = process(tmp_path)
    assert holder.stdout.readline() == "held\n"
    monkeypatch.setattr(run_lock.socket, "gethostname", lambda: "a-new-name")
    with pytest.raises(run_lock.LockHeld, match=f"process {holder.pid} .*: wait"):
        run_lock.Lock(tmp_path)
    holder.kill()
    holder.communicate()
    with run_lock.Lock(tmp_path):
        assert json.loads((tmp_path / run_lock.NAME).read_text())["host"] == "a-new-name"


@pytest.mark.parametrize("case", ["another host", "no flock", "unreadable", "empty"])
def test_a_lock_that_cannot_be_judged_stays_and_the_file_to_delete_is_named(
    tmp_path, case, monkeypatch
):
    write(tmp_path, host="elsewhere" if case == "another host" else socket.gethostname(), pid=77)
    monkeypatch.setattr(run_lock, "_WRITING_S", 0.01)
    if case == "no flock":
        monkeypatch.setattr(
            run_lock.fcntl,
            "flock",
            lambda *_: (_ for _ in ()).throw(OSError(38, "not implemented")),
        )
    if case in ("unreadable", "empty"):
        (tmp_path / run_lock.NAME).write_text("[]" if case == "unreadable" else "")
    before = (tmp_path / run_lock.NAME).read_bytes()
    with pytest.raises(run_lock.LockHeld) as e:
        run_lock.Lock(tmp_path)
    assert f"delete {tmp_path / run_lock.NAME}" in str(e.value) or "delete it" in str(e.value)
    assert ("process 77 on elsewhere" in str(e.value)) == (case == "another host")
    assert [p.name for p in tmp_path.iterdir()] == [run_lock.NAME] and (
        tmp_path / run_lock.NAME
    ).read_bytes() == before


def test_where_there_are_no_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr(
        run_lock.os, "link", lambda *_: (_ for _ in ()).throw(OSError(38, "not implemented"))
    )
    with run_lock.Lock(tmp_path):
        assert outcome(tmp_path) is None
    killed(tmp_path)
    with run_lock.Lock(tmp_path):
        assert outcome(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_two_run_directories_do_not_share_a_checkpoint_folder(tmp_path):
    shared = str(tmp_path / "shared")
    with run_directory.claim(tmp_path / "a", shared):
        with pytest.raises(ConfigError, match=r"config\.checkpoint\.path=.*shared: process"):
            run_directory.claim(tmp_path / "b", shared).__enter__()
        with pytest.raises(ConfigError, match=r"--workdir=.*a: process"):
            run_directory.claim(tmp_path / "a").__enter__()
    assert list(tmp_path.iterdir()) == []
    with run_directory.claim(tmp_path / "a", str(tmp_path / "b" / ".." / "a")):
        pass


@pytest.mark.parametrize("arms", ["()", "('a train.seed=1', 'b')"])
def test_training_refuses_before_it_reads_or_writes_anything(tmp_path, monkeypatch, arms):
    monkeypatch.setattr(
        "p2o_jax.startup.components.Components", lambda *_, **__: pytest.fail("must not be reached")
    )
    with run_lock.Lock(tmp_path / "run"):
        (tmp_path / "run" / "metrics.jsonl").write_text("{}\n")
        flags = [
            f"--workdir={tmp_path / 'run'}",
            f"--config.arms={arms}",
            "--config.mesh.cpu_devices=8",
        ]
        with pytest.raises(ConfigError, match=f"process {os.getpid()} on"):
            main.main(["--config=configs/smoke.py", *flags])
        names = sorted(p.name for p in (tmp_path / "run").iterdir())
        assert names == ["metrics.jsonl", run_lock.NAME]


def test_the_command_on_a_directory_in_use(tmp_path):
    """Exit code 2 and one line; after the first was killed the same command takes over, and
    meets the next problem.
    """
    holder, run = process(tmp_path / "run"), tmp_path / "run"
    assert holder.stdout.readline() == "held\n"
    flags = [
        "--config=configs/smoke.py",
        f"--workdir={run}",
        "--config.model.path=/none",
        "--config.data.path=/none",
    ]
    line = [sys.executable, "-m", "p2o_jax.main", *flags]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    before = (run / run_lock.NAME).read_bytes()
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2
        and done.stderr.count("error: ") == 1
        and f"process {holder.pid} on" in done.stderr
    )
    assert [p.name for p in run.iterdir()] == [run_lock.NAME] and (
        run / run_lock.NAME
    ).read_bytes() == before
    holder.kill()
    holder.communicate()
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2 and "no such directory" in done.stderr and "process" not in done.stderr
    )
    assert list(run.iterdir()) == []
