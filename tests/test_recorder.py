"""A run's records on a second start: what is cut, what is told, and how long it all took."""

import json
import time

import pytest

from p2o_jax.progress import Reporter, printable
from p2o_jax.recorder import Clock, RunLog, cut, read_seconds


class Telling(Reporter):
    def __init__(self):
        super().__init__(enabled=False)
        self.lines: list[str] = []

    def line(self, text):
        self.lines.append(text)


def ticks(path):
    return [json.loads(line)["tick"] for line in path.read_text().splitlines()]


def opened(workdir, tick) -> list[str]:
    reporter = Telling()
    RunLog(workdir, tick, 0, reporter).close()
    return reporter.lines


@pytest.fixture
def run(tmp_path):
    """The records of four ticks."""
    log = RunLog(tmp_path, 0, 0, Telling())
    for tick in range(4):
        log.metrics(tick, tick, {"reward/mean": tick})
    log.close()
    return tmp_path


def test_rows_after_the_checkpoint_are_cut(run):
    assert opened(run, 2) == []
    assert ticks(run / "metrics.jsonl") == [0, 1]


@pytest.mark.parametrize("torn", [b'{"tick": 4, "st', b'{"tick": 4}', b"\x00\x00\xff", b"{"])
def test_a_torn_last_line_is_cut_silently(run, torn):
    with open(run / "metrics.jsonl", "ab") as f:
        f.write(torn)
    assert opened(run, 4) == []
    assert ticks(run / "metrics.jsonl") == [0, 1, 2, 3]


def test_a_bad_line_before_the_last_and_missing_ticks_are_told(run):
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join([lines[0], "[1, 2]\n", "half a li\n", lines[3]]))
    told = opened(run, 4)
    assert [line.removeprefix(str(run)) for line in told] == [
        "/metrics.jsonl:2: no row of this run's; cut out",
        "/metrics.jsonl:3: no row of this run's; cut out",
        "/metrics.jsonl: there are no rows of the ticks [1, 2]",
    ]
    assert ticks(run / "metrics.jsonl") == [0, 3]


def test_cutting_is_done_whole_or_not_at_all(run, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    before = (run / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cut(run / "metrics.jsonl", 1, print)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_the_seconds_of_all_starts_count(tmp_path):
    assert read_seconds(tmp_path) == []
    for ago in (100, 20, 3):
        Clock(tmp_path, time.monotonic() - ago).write()
    assert read_seconds(tmp_path) == pytest.approx([100, 20, 3], abs=0.5)


def test_text_of_a_model_cannot_command_the_terminal():
    hostile = "a\x1b[31mred\x07\r\x9b2J\u202e\u2066\ud800 ü 答\n\tb"
    assert printable(hostile) == "a\\x1b[31mred\\x07\\r\\x9b2J\\u202e\\u2066\\ud800 ü 答\n\tb"
