"""Whole files, fresh names, and outputs that are never overwritten."""

import os

import pytest

from benchmarks import report as benchmark_report
from p2o_jax.config import ConfigError
from p2o_jax.runtime import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file_touches_no_neighbour(tmp_path):
    for name in ("a.json", "a.json.tmp", "a.json.partial", "a.json.partial-1"):
        (tmp_path / name).write_text("mine")
    files.write_json(tmp_path / "a.json", {"x": 1})
    assert (tmp_path / "a.json").read_text() == '{\n "x": 1\n}'
    assert [(tmp_path / n).read_text() for n in names(tmp_path)[1:]] == ["mine"] * 3


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    files.write_whole(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_whole(tmp_path / "a.txt", "\ud800")
    monkeypatch.setattr(os, "fsync", lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        files.write_whole(tmp_path / "a.txt", "new")
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_what_a_killed_command_left_is_reported_and_kept(tmp_path):
    target = tmp_path / "out[1]"
    files.unused(target).mkdir()
    (tmp_path / "out[1].old").mkdir()
    (line,) = files.leftovers(target)
    assert "out[1].partial-" in line and "killed" in line
    assert len(names(tmp_path)) == 2
    assert len({files.unused(target) for _ in range(100)}) == 100


def test_only_a_folder_of_the_failed_command_is_deleted(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyError), files.removed_on_failure(tmp_path / "made"):
        (tmp_path / "made").mkdir()
        raise KeyError
    assert names(tmp_path) == ["mine"]
    with files.removed_on_failure(tmp_path / "mine"):
        pass
    assert names(tmp_path) == ["mine"]


def test_output_goes_to_new_or_empty_files_pipes_and_devices_only(tmp_path):
    full, empty, pipe = tmp_path / "full", tmp_path / "empty", tmp_path / "pipe"
    full.write_text("mine")
    empty.touch()
    os.mkfifo(pipe)
    assert [
        line.split(": ")[0] for line in files.conflicts("--out", full, empty, pipe, tmp_path)
    ] == ["--out", "--out"]
    with pytest.raises(FileExistsError, match="never overwritten"):
        files.create(full)
    assert full.read_text() == "mine"
    for path in (empty, tmp_path / "new", tmp_path / "/dev/null"):
        with files.create(path) as f:
            f.write("x")
    assert empty.read_text() == (tmp_path / "new").read_text() == "x"


def test_a_benchmark_takes_a_folder_only_where_there_is_nothing_to_delete(tmp_path):
    assert benchmark_report.own_folder("", str(tmp_path)) == tmp_path
    assert benchmark_report.own_folder(str(tmp_path / "a" / "b"), "x").is_dir()
    with pytest.raises(ConfigError, match="must be new or empty"):
        benchmark_report.own_folder(str(tmp_path), "x")
