"""What a verifier process may not do, and when it is replaced. The planted judge does what its
text says.
"""

import textwrap

import pytest

from p2o_jax.rewards.pool import Pool

JUDGE = """
    import os, socket, subprocess, urllib.request
    {sealed}
    hoard = []

    def judge(text):
        if text == "grow":
            hoard.append(b"x" * (600 << 20))
        deeds = {{
            "socket": lambda: socket.socket(),
            "connect": lambda: socket.create_connection(("127.0.0.1", 9), 0.1),
            "look up": lambda: socket.getaddrinfo("localhost", 80),
            "url": lambda: urllib.request.urlopen("http://127.0.0.1:9/"),
            "shell": lambda: os.system("true"),
            "run": lambda: subprocess.run(["true"]),
            "fork": lambda: os.fork() or os._exit(0),
            "exec": lambda: os.execv("/bin/true", ["true"]),
            "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {{}}),
            "write": lambda: open("{folder}/written", "w"),
            "make": lambda: os.mkdir("{folder}/made"),
            "kill": lambda: os.kill(os.getppid(), 0),
            "evaluated": lambda: eval("__import__('os').system('true')"),
            "read": lambda: open("/dev/null").read(),
        }}
        try:
            deeds.get(text, lambda: None)()
        except PermissionError as e:
            return "forbidden"
        except OSError as e:
            return "tried"
        return f"did {{os.getpid()}}"
"""
FORBIDDEN = [
    "socket",
    "connect",
    "look up",
    "url",
    "shell",
    "run",
    "fork",
    "exec",
    "spawn",
    "write",
    "make",
    "kill",
    "evaluated",
]


@pytest.fixture
def pool(tmp_path, monkeypatch, request):
    sealed = getattr(request, "param", "")
    (tmp_path / "deeds.py").write_text(
        textwrap.dedent(JUDGE).format(folder=tmp_path, sealed=sealed)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with Pool(1, 20.0, "deeds:judge") as pool:
        yield pool


def test_no_network_no_processes_no_files(pool, tmp_path):
    assert pool.run([(deed,) for deed in FORBIDDEN]) == ["forbidden"] * len(FORBIDDEN)
    assert pool.run([("read",), ("nothing",)])[0].startswith("did")
    assert pool.counts == {"started": 1}
    assert not (tmp_path / "written").exists() and not (tmp_path / "made").exists()


@pytest.mark.parametrize("pool", ["SEALED = False"], indirect=True)
def test_a_function_of_the_user_s_own_is_not_sealed(pool):
    assert pool.run([("socket",), ("shell",), ("write",)]) == [pool.run([("nothing",)])[0]] * 3


def test_a_worker_that_has_grown_is_replaced_and_its_answer_counts(pool):
    first, second, third = (pool.run([(text,)])[0] for text in ("nothing", "grow", "nothing"))
    assert first == second and third.startswith("did") and third != first
    assert pool.counts == {"started": 2, "recycled": 1}
