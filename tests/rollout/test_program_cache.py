"""Programs compiled ahead, in the background, and when they are needed."""

import threading
from types import SimpleNamespace

import pytest

from p2o_jax.rollout.program_cache import ProgramCache


class Compiler:
    """Compiles a key to itself, in the order noted, once `go` is set; `bad` fails."""

    def __init__(self):
        self.compiled, self.go = [], threading.Event()
        self.go.set()
        self.cache = ProgramCache(self.lower)

    def lower(self, key):
        def compile():
            assert self.go.wait(10)
            self.compiled.append(key)
            if key == "bad":
                raise ValueError(key)
            return key

        return SimpleNamespace(compile=compile)


def test_a_program_that_is_needed_does_not_wait_for_those_in_the_background():
    compiler = Compiler()
    compiler.go.clear()
    compiler.cache.compile_later(["a", "b", "c", "bad"])
    threading.Timer(0.1, compiler.go.set).start()
    assert compiler.cache["c"] == "c"
    assert compiler.cache["a"] == "a" and compiler.cache["b"] == "b"
    with pytest.raises(ValueError, match="bad"):
        _ = compiler.cache["bad"]
    compiler.cache.close()
    assert sorted(compiler.compiled) == ["a", "b", "bad", "c"]  # each once
    assert compiler.compiled.index("c") < compiler.compiled.index("bad")


def test_closing_leaves_the_rest_uncompiled():
    compiler = Compiler()
    compiler.go.clear()
    compiler.cache.compile_later(iter("abcdef"))
    closing = threading.Thread(target=compiler.cache.close)
    closing.start()
    while not compiler.cache._closed:
        pass
    compiler.go.set()
    closing.join(10)
    assert not closing.is_alive() and compiler.compiled in ([], ["a"])
