"""Processes that know of each other: threads with connections here, real processes in
tests/multihost.
"""

import json
import socket
import subprocess
import sys
import textwrap
import threading
import time
from queue import Empty, Queue

import pytest

from p2o_jax.runtime import liveness
from p2o_jax.runtime.liveness import Limits, Missing, Peers

LIMITS = Limits(start=5.0, silent=5.0, absent=5.0)
HOST = socket.gethostname()


class Run:
    """`with Run(3) as run`: run.peers, and what each of them would have ended with, in
    run.ended[i].
    """

    def __init__(self, count: int, limits: Limits = LIMITS):
        self.address, self.count, self.limits = f"localhost:{free_port()}", count, limits
        self.ended: list[Queue] = [Queue() for _ in range(count)]
        self.peers: dict[int, Peers] = {}

    def join(self, i: int) -> None:
        self.peers[i] = Peers(self.address, i, self.count, self.limits, self.ended[i].put)

    def __enter__(self):
        threads = [
            threading.Thread(target=self.join, args=(i,)) for i in reversed(range(self.count))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self

    def __exit__(self, *_):
        for one in self.peers.values():
            one.leave()

    def message(self, i: int, seconds: float = 3.0) -> str:
        return self.ended[i].get(timeout=seconds)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def vanish(one: Peers) -> None:
    """Closes a process's connections one by one, without a message, as the kernel does."""
    one._say = lambda *args, **message: None
    for line in list(one._lines.values()):
        line.socket.shutdown(socket.SHUT_RDWR)


def test_all_know_all_hosts():
    with Run(3) as run:
        assert [run.peers[i].hosts for i in range(3)] == [dict.fromkeys(range(3), HOST)] * 3


@pytest.mark.parametrize(("gone", "others"), [(2, (0, 1)), (0, (1, 2))])
def test_a_process_that_is_gone_is_named_by_all_others(gone, others):
    with Run(3) as run:
        vanish(run.peers[gone])
        assert [run.message(i) for i in others] == [f"process {gone} ({HOST}) is gone"] * 2


def test_a_process_that_leaves_as_it_should_ends_nobody():
    with Run(3) as run:
        run.peers[1].leave()
        run.peers[0].leave()
        time.sleep(0.5)
        assert all(queue.empty() for queue in run.ended)


def test_a_process_that_fails_tells_why_and_the_others_have_a_moment_to_end_by_themselves(
    monkeypatch,
):
    monkeypatch.setattr(liveness, "GRACE_S", 0.5)
    with Run(3) as run:
        run.peers[1].leave("no such file")
        time.sleep(0.1)
        run.peers[2].leave("no such file")  # fails by itself, too
        assert run.message(0) == f"process 1 ({HOST}) has ended: no such file"
        with pytest.raises(Empty):
            run.message(2, 1.0)


def test_the_reason_arrives_though_the_process_has_not_read_its_messages(monkeypatch):
    """Nagle's algorithm holds it behind a message on its way; closing a connection with unread
    data resets it, and drops what is held.
    """
    monkeypatch.setattr(liveness, "GRACE_S", 0.1)
    with Run(2) as run:
        monkeypatch.setattr(run.peers[1], "_hear", lambda i: True)
        for _ in range(5):
            run.peers[0]._say(place=0)
            run.peers[1]._say(place=0)
        run.peers[1].leave("no such file")
        assert run.message(0) == f"process 1 ({HOST}) has ended: no such file"


def test_a_process_without_a_sign_of_life_is_named(monkeypatch):
    """It is there, but stopped: its connection stays open."""
    with Run(3, LIMITS._replace(silent=0.5)) as run:
        monkeypatch.setattr(run.peers[2], "_say", lambda **message: None)
        assert (
            run.message(0) == run.message(1) == f"process 2 ({HOST}) gave no sign of life for 0.5 s"
        )


def test_a_process_that_does_not_reach_a_barrier_is_named():
    with Run(3, LIMITS._replace(absent=0.6)) as run:
        for i in (0, 2):
            run.peers[i].place = 7
        expected = (
            f"process 1 ({HOST}) did not reach barrier 7 of the run, where the others have"
            " waited for 0.6 s"
        )
        assert [run.message(i) for i in range(3)] == [expected] * 3


def test_processes_that_all_wait_or_that_get_on_are_left_alone():
    with Run(2, LIMITS._replace(absent=0.4, silent=0.4)) as run:
        for place in range(12):
            run.peers[place % 2].place = place  # one is always behind, but not for long
            time.sleep(0.1)
        for one in run.peers.values():
            one.place = 12
        time.sleep(1.0)
        assert all(queue.empty() for queue in run.ended)


def test_missing_processes_are_named_on_all_others():
    run, messages = Run(4, LIMITS._replace(start=1.0)), {}

    def try_to_join(i):
        with pytest.raises(Missing) as e:
            run.join(i)
        messages[i] = str(e.value)

    threads = [threading.Thread(target=try_to_join, args=(i,)) for i in (0, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = (
        "not all of 4 processes have started within 1 s: no sign of 1, 3; started: process 0"
        f" ({HOST}), process 2 ({HOST})"
    )
    assert messages == {0: expected, 2: expected}


def test_a_missing_process_0_is_reported():
    run = Run(2, LIMITS._replace(start=0.5))
    with pytest.raises(
        Missing, match=rf"process 0 has not started within 0.5 s: {run.address} does not answer"
    ):
        run.join(1)


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        run = Run(2)
        run.address = f"localhost:{server.getsockname()[1]}"
        with pytest.raises(Missing, match="does another run use it"):
            run.join(0)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"",
        b'{"process": 7, "of": 2}\n',
        b'{"process": 1, "of": 3}\n',
        b'{"process": [], "of": 2}\n',
        b"[1]\n",
    ],
)
def test_strangers_at_the_port_do_not_count(said):
    run = Run(2)
    main = threading.Thread(target=run.join, args=(0,))
    main.start()
    for _ in range(50):
        try:
            stranger = socket.create_connection(
                ("localhost", int(run.address.rpartition(":")[2])), timeout=5
            )
            break
        except OSError:
            time.sleep(0.05)
    with stranger:
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        answer = stranger.makefile().readline()
    assert "joined a run of 2 processes" in json.loads(answer)["end"]
    run.join(1)
    main.join()
    run.__exit__()
    assert run.peers[0].hosts == {0: HOST, 1: HOST}


def test_alone_nothing_is_waited_for_and_an_exit_is_an_exit():
    assert not liveness.joined()
    liveness.met()
    begin = time.monotonic()
    liveness.wait_for_news()
    with pytest.raises(SystemExit) as e:
        liveness.stop(3, "why")
    assert e.value.code == 3 and time.monotonic() - begin < 1


def run_processes(count: int, code: str) -> tuple[list[int], list[str]]:
    """Exit codes, and what is on standard error, of processes that run the code after they have
    joined; `i` is the process' number.
    """
    joined = """
        import ctypes, os, sys, threading, time
        from p2o_jax import main
        from p2o_jax.config import ConfigError
        from p2o_jax.runtime import liveness
        liveness.GRACE_S, liveness.PATIENCE_S = 1.0, 0.2
        i = int(sys.argv[2])
        def run(argv):
            liveness.join(argv[0], i, int(argv[2]), liveness.Limits(30.0, 30.0, 30.0))
    """
    code = (
        textwrap.dedent(joined)
        + textwrap.indent(textwrap.dedent(code), "    ")
        + "\nmain.command(run)\n"
    )
    address = f"localhost:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, address, str(i), str(count)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    outputs = [process.communicate(timeout=60)[1] for process in started]
    return [process.returncode for process in started], outputs


def test_processes_stuck_in_c_end_when_another_is_killed():
    codes, outputs = run_processes(
        3,
        """
        if i == 2:
            threading.Timer(0.2, os.kill, (os.getpid(), 9)).start()
        ctypes.CDLL(None).sleep(60)
        """,
    )
    assert codes == [liveness.GONE, liveness.GONE, -9]
    assert (
        outputs[:2]
        == [
            f"error: process 2 ({HOST}) is gone; the same command continues from the last"
            " checkpoint\n"
        ]
        * 2
    )


def test_a_process_that_fails_alone_ends_the_others_with_its_reason():
    codes, outputs = run_processes(
        2,
        """
        if i == 1:
            raise ConfigError("FILE: no such file")
        time.sleep(60)
        """,
    )
    assert codes == [liveness.GONE, 2] and outputs[1] == "error: FILE: no such file\n"
    assert outputs[0].startswith(f"error: process 1 ({HOST}) has ended: FILE: no such file;")


def test_a_bug_has_its_traceback_on_its_process_and_its_name_on_others():
    codes, outputs = run_processes(
        2,
        """
        if i == 0:
            raise KeyError("x")
        time.sleep(60)
        """,
    )
    assert (
        codes == [1, liveness.GONE] and "Traceback" in outputs[0] and "KeyError: 'x'" in outputs[0]
    )
    assert (
        outputs[1].startswith(f"error: process 0 ({HOST}) has ended: KeyError: 'x';")
        and "Traceback" not in outputs[1]
    )


def test_a_problem_found_by_all_ends_all_by_themselves():
    codes, outputs = run_processes(2, 'raise ConfigError("config.a=1: not that")')
    assert codes == [2, 2] and outputs == ["error: config.a=1: not that\n"] * 2


def test_an_exception_caused_by_another_process_s_end_is_not_reported():
    """As a collective fails in which a process has died."""
    codes, outputs = run_processes(
        2,
        """
        if i == 1:
            os.kill(os.getpid(), 9)
        time.sleep(0.1)
        raise RuntimeError("connection reset by peer")
        """,
    )
    assert (
        codes == [liveness.GONE, -9] and "process 1" in outputs[0] and "Traceback" not in outputs[0]
    )
