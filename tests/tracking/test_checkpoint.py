"""Checkpoints: what stays, every way to damage one, full and read-only disks, other meshes, and
what is planned for the disk.
"""

import errno
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from p2o_jax import config
from p2o_jax.config import ConfigError
from p2o_jax.runtime import file_digests, files
from p2o_jax.state import Assignment, Ledger, RunState
from p2o_jax.tracking import best, checkpoint, checkpoint_reader, disk_space
from p2o_jax.tracking.checkpoint import Checkpoints

PARTS = ("learner", "host")
# orbax's readers of damaged files
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def mesh(count: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:count]), ("fsdp",))


def learner(tick: int, devices: int = 8):
    """Arrays of three dtypes, split over the devices or whole, that show the tick."""
    split, whole = (
        NamedSharding(mesh(devices), spec) for spec in (PartitionSpec("fsdp"), PartitionSpec())
    )
    key = jax.random.key(tick)
    return {
        "w": jax.device_put(jax.random.normal(key, (64, 32)), split),
        "mu": jax.device_put(jax.random.normal(key, (64, 16)).astype(jnp.bfloat16), split),
        "count": jax.device_put(jnp.int32(tick), whole),
    }


def abstract(devices: int = 8):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), learner(0, devices)
    )


def state(tick: int, devices: int = 8) -> RunState:
    """A state that is at policy step `tick`."""
    assignment = Assignment({"q": ("z", "", "z")})
    return RunState(
        learner(tick, devices),
        tick=tick,
        step=tick,
        assignment=assignment,
        ledger=Ledger({"policy": {"seconds": 0.1 * tick}}),
    )


def write(workdir: Path, ticks, **settings) -> None:
    kept = Checkpoints(workdir, config.CheckpointConfig(**settings))
    for tick in ticks:
        kept.save(state(tick))
    kept.close()


def same(a: RunState, b: RunState) -> bool:
    bits = [
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(*map(jax.tree.leaves, (a.learner, b.learner)), strict=True)
    ]
    return all(bits) and a.to_json() == b.to_json()


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below the folder with its bytes."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def newest(workdir: Path, devices: int = 8, **settings) -> tuple[RunState | None, list[str]]:
    messages: list[str] = []
    kept = Checkpoints(workdir, config.CheckpointConfig(**settings), messages.append)
    try:
        return kept.latest(abstract(devices), RunState.from_json), messages
    finally:
        kept.close()


def test_the_newest_the_milestones_and_the_best_stay(tmp_path):
    kept = Checkpoints(tmp_path, config.CheckpointConfig(keep=2, keep_every=4))
    for tick, accuracy in enumerate([0.1, 0.1, 0.5, 0.2, 0.3, 0.5, 0.4, 0.0, 0.0, 0.0, 0.0]):
        kept.save(state(tick))
        kept.save_if_best(state(tick), accuracy)
    kept.close()
    assert checkpoint_reader.policies(
        checkpoint.directory(tmp_path, config.CheckpointConfig())
    ) == {t: t for t in (0, 2, 4, 8, 9, 10)}
    assert best.read_best(kept.directory) == (2, 2, 0.5)
    # another start knows the best, too
    again = Checkpoints(tmp_path, config.CheckpointConfig(keep=1))
    again.save(state(11))
    again.save_if_best(state(11), 0.5)
    again.save(state(12))
    again.close()
    assert set(checkpoint_reader.policies(kept.directory)) == {2, 12}


def with_eval(workdir: Path, evaluation: str, messages: list[str]) -> Checkpoints:
    return Checkpoints(
        workdir, config.CheckpointConfig(keep=1), messages.append, evaluation=evaluation
    )


def test_accuracies_by_other_settings_of_evaluation_are_not_compared(tmp_path):
    """The best of each measure stays as a checkpoint, also across a third start; the comparison
    begins anew.
    """
    messages: list[str] = []
    for evaluation, tick, accuracy in (
        ("greedy", 1, 0.9),
        ("greedy", 2, 0.8),
        ("sampled", 3, 0.2),
        ("sampled", 4, 0.1),
        ("greedy", 5, 0.3),
    ):
        kept = with_eval(tmp_path, evaluation, messages)
        kept.save(state(tick))
        kept.save_if_best(state(tick), accuracy)
        kept.close()
    assert set(checkpoint_reader.policies(kept.directory)) == {1, 3, 5}
    assert best.read_best(kept.directory) == (5, 5, 0.3)
    assert [
        "config.eval is not that of step 1, the best so far (0.900)" in messages[0],
        "step 3" in messages[1],
        len(messages),
    ] == [True, True, 2]
    kept = with_eval(tmp_path, "sampled", messages)
    kept.close()
    assert best.read_best(kept.directory) == (5, 5, 0.3), "until there is a new one"


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[",
        "null",
        "[]",
        '{"tick": 1}',
        '{"tick": "1", "step": 1, "accuracy": 1}',
        '{"tick": 1, "best": 2}',
    ],
)
def test_a_damaged_note_of_the_best_is_refused_and_its_checkpoint_stays(tmp_path, damage):
    kept = Checkpoints(tmp_path, config.CheckpointConfig(keep=1))
    kept.save_if_best(state(1), 0.5)
    kept.save(state(2))
    kept.close()
    (kept.directory / "best.json").write_text(damage)
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=r"best\.json: damaged"):
        Checkpoints(tmp_path, config.CheckpointConfig(keep=1))
    with pytest.raises(ConfigError, match=r"best\.json: damaged"):
        best.read_best(kept.directory)
    assert tree(tmp_path) == before


def test_that_a_checkpoint_is_complete_is_said_before_the_next_one(tmp_path):
    said: list[int] = []
    kept = Checkpoints(
        tmp_path,
        config.CheckpointConfig(),
        completed=lambda: said.append(len(list(kept.directory.glob("[0-9]*")))),
    )
    kept.save(state(0))
    assert said == []
    kept.save(state(1))
    assert said == [1]
    kept.close()
    assert said == [1, 2]


def test_what_a_kill_kept_from_being_deleted_goes_at_the_end(tmp_path):
    write(tmp_path, [1, 2, 3, 4], keep=4)
    write(tmp_path, [4], keep=2)
    assert set(
        checkpoint_reader.policies(checkpoint.directory(tmp_path, config.CheckpointConfig()))
    ) == {3, 4}


def test_the_state_told_of_last_is_saved_unless_an_update_has_used_it_up(tmp_path):
    kept = Checkpoints(tmp_path, config.CheckpointConfig(every_steps=0))
    kept.save_last()
    kept.save_if_due(state(0), state(1))
    kept.save_last()
    used_up = state(2)
    kept.save_if_due(state(1), used_up)
    jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(used_up.learner)
    kept.save_last()
    kept.close()
    assert set(checkpoint_reader.policies(kept.directory)) == {1}


def test_a_prompt_phase_s_state_is_the_milestone_of_its_step(tmp_path):
    kept = Checkpoints(tmp_path, config.CheckpointConfig(keep=1, keep_every=2))
    for tick, step in enumerate([0, 1, 2, 2, 3]):
        kept.save(RunState(learner(tick), tick=tick, step=step))
    kept.close()
    assert checkpoint_reader.policies(kept.directory) == {0: 0, 2: 3, 3: 4}


@pytest.mark.parametrize(
    "damage",
    [
        "flipped",
        pytest.param("missing", marks=pytest.mark.slow),
        pytest.param("half", marks=pytest.mark.slow),
        pytest.param("empty", marks=pytest.mark.slow),
    ],
)
def test_no_damage_to_any_file_goes_unnoticed(tmp_path, damage):
    """The state before is taken instead, or all bits are there (files that nobody reads); the
    damaged step is named and kept aside.
    """
    write(tmp_path / "good", [1, 2])
    paths = [
        p.relative_to(tmp_path / "good")
        for p in sorted((tmp_path / "good/checkpoints/2").rglob("*"))
        if p.is_file()
    ]
    outcomes = set()
    for number, path in enumerate(paths):
        run = tmp_path / f"{damage}{number}"
        shutil.copytree(tmp_path / "good", run)
        data = bytearray((run / path).read_bytes())
        if damage == "missing":
            (run / path).unlink()
        elif damage == "flipped" and data:
            data[len(data) // 2] ^= 0x10
            (run / path).write_bytes(bytes(data))
        else:
            (run / path).write_bytes(bytes(data[: len(data) // 2 if damage == "half" else 0]))
        restored, messages = newest(run)
        assert restored and same(restored, state(restored.tick)), path
        outcomes.add(restored.tick)
        if restored.tick == 1:
            (line,) = messages
            assert str(run / "checkpoints/2") in line and "damaged" in line
            assert (run / "checkpoints_damaged/2").is_dir() and not (run / "checkpoints/2").exists()
            write(run, [2])
            again, messages = newest(run)
            assert again and same(again, state(2)) and not messages
    assert 1 in outcomes


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_damage(tmp_path, part):
    write(tmp_path, [1, 2, 3], keep=3)
    shutil.rmtree(tmp_path / "checkpoints/3" / part)
    (tmp_path / "checkpoints/2/host/metadata").write_text("{")
    restored, messages = newest(tmp_path, keep=3)
    assert restored and same(restored, state(1)) and len(messages) == 2


def test_other_values_than_were_saved_are_damage(tmp_path):
    write(tmp_path, [1, 2])
    host = tmp_path / "checkpoints/2/host/metadata"
    host.write_text(host.read_text().replace('"step": 2', '"step": 7'))
    assert "host state" in newest(tmp_path)[1][0]
    write(tmp_path, [2])
    shutil.rmtree(tmp_path / "checkpoints/2/learner")
    shutil.copytree(tmp_path / "checkpoints/1/learner", tmp_path / "checkpoints/2/learner")
    restored, messages = newest(tmp_path)
    assert restored and restored.tick == 1 and "learner/" in messages[0]


def test_a_run_does_not_start_over_when_nothing_can_be_read(tmp_path):
    write(tmp_path, [1])
    shutil.rmtree(tmp_path / "checkpoints/1/learner")
    for _ in range(2):
        with pytest.raises(ConfigError, match="no undamaged checkpoint is left; .*--restart"):
            newest(tmp_path)
    assert (tmp_path / "checkpoints_damaged/1").is_dir()


def test_another_run_s_checkpoints_are_refused_and_left_alone(tmp_path):
    write(tmp_path, [1])
    other = Checkpoints(tmp_path, config.CheckpointConfig(), settings="of another run")
    with pytest.raises(ConfigError, match="run with other settings"):
        other.latest(abstract(), RunState.from_json)
    other.close()
    assert newest(tmp_path)[0].tick == 1


BARE = Exception("Failed to transform values: zstd decompression")


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory allocating 4 bytes"), 1),
        (BARE, 1),
        (OSError(errno.EACCES, "Permission denied"), 1),
        (RuntimeError("503 UNAVAILABLE: try again later"), 3),
        (OSError(errno.EIO, "Input/output error"), 3),
    ],
    ids=lambda value: str(value)[:20],
)
def test_an_exception_while_restoring_is_no_damage(tmp_path, monkeypatch, error, attempts):
    write(tmp_path, [1, 2])
    before = tree(tmp_path)
    calls = []

    def fails(*args, **kwargs):
        calls.append(args)
        raise error

    monkeypatch.setattr(checkpoint_reader, "RETRY_SECONDS", (0.0, 0.0))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.ocp.CheckpointManager, "restore", fails)
        with pytest.raises(
            ConfigError, match="checkpoints/2: could not be read: .*nothing was changed"
        ):
            newest(tmp_path, keep=1)
    assert len(calls) == attempts and tree(tmp_path) == before
    restored, messages = newest(tmp_path)
    assert restored and same(restored, state(2)) and not messages


def test_a_store_that_recovers_is_tried_again(tmp_path, monkeypatch):
    write(tmp_path, [1])
    failures = [OSError(errno.ETIMEDOUT, "timed out"), ConnectionResetError()]
    digest_of = file_digests._digest

    def flaky(path):
        if failures:
            raise failures.pop()
        return digest_of(path)

    monkeypatch.setattr(checkpoint_reader, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(file_digests, "_digest", flaky)
    restored, messages = newest(tmp_path)
    assert restored and same(restored, state(1)) and not messages and not failures


def test_a_store_that_fails_while_the_owner_is_read_is_tried_again(tmp_path, monkeypatch):
    write(tmp_path, [1])
    kept = Checkpoints(tmp_path, config.CheckpointConfig())
    failures, host_state = [OSError(errno.EIO, "Input/output error")], checkpoint_reader.host_state
    monkeypatch.setattr(checkpoint_reader, "RETRY_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(
        checkpoint_reader,
        "host_state",
        lambda path: fail(failures) if failures else host_state(path),
    )
    restored = kept.latest(abstract(), RunState.from_json)
    kept.close()
    assert restored and same(restored, state(1)) and not failures


def fail(failures: list[OSError]):
    raise failures.pop()


@pytest.mark.parametrize("change", ["dtype", "shape", "missing", "new"])
def test_a_state_that_does_not_fit_is_refused_by_name_and_left_alone(tmp_path, change):
    write(tmp_path, [1, 2])
    before = tree(tmp_path)
    wanted = abstract()
    name, expected = {
        "dtype": (
            "w",
            r"\['w'\] is float32\[64, 32\] in the checkpoint and bfloat16\[64, 32\] .*param_dtype",
        ),
        "shape": (
            "w",
            (
                r"\['w'\] is float32\[64, 32\] in the checkpoint and float32\[64, 40\]"
                r" .*config.model.path"
            ),
        ),
        "missing": (
            "w",
            r"\['w'\] is float32\[64, 32\] in the checkpoint and not there in this run",
        ),
        "new": ("nu", r"\['nu'\] is missing in the checkpoint and float32\[64, 32\] in this run"),
    }[change]
    w = wanted["w"]
    if change == "missing":
        del wanted["w"]
    else:
        shape, dtype = (
            ((64, 40) if change == "shape" else w.shape),
            (jnp.bfloat16 if change == "dtype" else w.dtype),
        )
        wanted[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=w.sharding)
    kept = Checkpoints(tmp_path, config.CheckpointConfig())
    with pytest.raises(ConfigError, match=expected) as caught:
        kept.latest(wanted, RunState.from_json)
    kept.close()
    assert len(caught.value.problems) == 1 and tree(tmp_path) == before


def test_padding_of_the_vocabulary_comes_and_goes_with_the_mesh(tmp_path):
    """193 rows are stored as 194 by two devices, and read as 200 by eight, as 193 by one."""

    def padded(rows: int, devices: int):
        w = np.zeros((rows, 4), np.float32)
        w[:193] = np.random.default_rng(0).normal(size=(193, 4))
        return {"w": jax.device_put(w, NamedSharding(mesh(devices), PartitionSpec("fsdp")))}

    unpadded = {"w": jax.ShapeDtypeStruct((193, 4), jnp.float32)}
    kept = Checkpoints(tmp_path, config.CheckpointConfig(), unpadded=unpadded)
    kept.save(RunState(padded(194, 2), tick=1))
    kept.close()
    for rows, devices in ((200, 8), (194, 2), (193, 1)):
        wanted = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            padded(rows, devices),
        )
        kept = Checkpoints(tmp_path, config.CheckpointConfig(), unpadded=unpadded)
        restored = kept.latest(wanted, RunState.from_json)
        kept.close()
        assert restored and np.array_equal(restored.learner["w"], padded(rows, devices)["w"]), rows


def test_a_step_whose_host_state_cannot_be_read_is_not_deleted(tmp_path):
    write(tmp_path, [1, 2, 3], keep=3)
    (tmp_path / "checkpoints/1/host/metadata").write_text("{")
    write(tmp_path, [4, 5], keep=1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "5"]


def test_a_damaged_newest_checkpoint_is_not_passed_over_by_readers(tmp_path):
    write(tmp_path, [1, 2])
    where = checkpoint.directory(tmp_path, config.CheckpointConfig())
    (tmp_path / "checkpoints/2/host/metadata").write_text("{")
    with pytest.raises(ConfigError, match="checkpoints/2: the newest checkpoint is damaged"):
        checkpoint_reader.policies(where)
    (tmp_path / "checkpoints/1/host/metadata").write_text("{")
    (tmp_path / "checkpoints/2").rename(tmp_path / "away")
    write(tmp_path, [2])
    assert checkpoint_reader.policies(where) == {2: 2}


def test_damage_to_another_run_s_checkpoint_moves_nothing(tmp_path):
    write(tmp_path, [1, 2])
    next((tmp_path / "checkpoints/2/learner/d").iterdir()).write_bytes(b"")
    before = tree(tmp_path)
    other = Checkpoints(tmp_path, config.CheckpointConfig(), settings="of another run")
    with pytest.raises(ConfigError, match="run with other settings"):
        other.latest(abstract(), RunState.from_json)
    other.close()
    assert tree(tmp_path) == before


def test_bits_that_were_read_wrongly_are_refused(tmp_path, monkeypatch):
    write(tmp_path, [1])
    before = tree(tmp_path)
    restore = checkpoint.ocp.CheckpointManager.restore

    def wrong(self, *args, **kwargs):
        restored = restore(self, *args, **kwargs)
        restored["learner"]["w"] = restored["learner"]["w"] + 1
        return restored

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "restore", wrong)
    with pytest.raises(ConfigError, match=r"the restored bits of \['w'\] are not those"):
        newest(tmp_path)
    assert tree(tmp_path) == before


def test_what_a_kill_left_half_written_is_no_checkpoint(tmp_path):
    write(tmp_path, [1])
    (left,) = [p for p in (tmp_path / "checkpoints").iterdir() if p.name == "1"]
    shutil.copytree(left, tmp_path / "checkpoints/2.orbax-checkpoint-tmp")
    # noted, not yet written
    (tmp_path / "checkpoints/best.json").write_text('{"tick": 2, "step": 2, "accuracy": 0.5}')
    restored, messages = newest(tmp_path)
    assert restored and same(restored, state(1)) and not messages
    kept = Checkpoints(tmp_path, config.CheckpointConfig())
    kept.save_if_best(state(2), 0.1)
    kept.close()
    assert best.read_best(kept.directory) == (2, 2, 0.1)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_another_number_of_devices_reads_the_same_bits(tmp_path, devices):
    write(tmp_path, [3])
    restored, messages = newest(tmp_path, devices)
    assert restored and same(restored, state(3)) and not messages
    assert len(restored.learner["w"].sharding.device_set) == devices


def test_bit_sums_do_not_depend_on_the_mesh_and_see_every_bit():
    sums = checkpoint_reader.bit_sums(learner(5, 1))
    assert sums == checkpoint_reader.bit_sums(learner(5, 8)) and set(sums) == {
        "['w']",
        "['mu']",
        "['count']",
    }
    assert checkpoint_reader.bit_sums({"x": jnp.array([1, 2], jnp.int32)}) == {"['x']": 3}
    assert checkpoint_reader.bit_sums({"x": jnp.array([0.0, -0.0], jnp.float32)}) == {
        "['x']": 1 << 31
    }


FULL = """
import resource, sys
from pathlib import Path
sys.path[:0] = {folders!r}
import conftest
import test_checkpoint as t
from p2o_jax import config
from p2o_jax.tracking.checkpoint import Checkpoints
from p2o_jax.main import command
def run(argv):
    kept = Checkpoints(Path(argv[0]), config.CheckpointConfig())
    kept.save(t.state(1)); kept._manager.wait_until_finished()
    {fault}
    kept.save(t.state(2)); kept.close()
command(run)
"""


def refused(workdir: Path, fault: str) -> str:
    """The output of a program in which writing a second checkpoint fails (besides orbax, at
    length); the first one is whole.
    """
    code = FULL.format(folders=[str(p) for p in Path(__file__).parents[:2]], fault=fault)
    done = subprocess.run(
        [sys.executable, "-c", code, str(workdir)],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
    )
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    restored, messages = newest(workdir)
    assert restored and same(restored, state(1)) and not messages
    return line


def test_a_limit_on_file_sizes_is_told_and_the_older_one_is_good(tmp_path):
    fault = (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        " resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    )
    line = refused(tmp_path, fault)
    assert (
        str(tmp_path / "checkpoints") in line
        and "could not be written" in line
        and "ticks [1] are whole" in line
    )


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 256 KiB, where this process may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_told_and_the_older_one_is_good(small_disk):
    fill = "open(Path(argv[0]) / 'fill', 'wb', buffering=0).write(bytes(1 << 20))"
    line = refused(small_disk, fill)
    assert (
        "could not be written" in line
        and "ticks [1] are whole" in line
        and ("No space" in line or "ENOSPC" in line)
    )


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(ConfigError, match="no checkpoint can be written"):
        Checkpoints(tmp_path, config.CheckpointConfig())


def test_buckets_are_addressed_as_they_are():
    there = checkpoint.directory(Path("runs/x"), config.CheckpointConfig(path="gs://bucket/run"))
    assert str(there) == "gs://bucket/run" and isinstance(there, epath.Path)
    assert checkpoint.directory(Path("/w"), config.CheckpointConfig()) == epath.Path(
        "/w/checkpoints"
    )
    assert (
        disk_space.problems(
            Path("/w"), config.CheckpointConfig(path="gs://bucket/run"), 1 << 60, 10
        )
        == []
    )


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is there")
def test_what_a_bucket_needs_is_told():
    with pytest.raises(ConfigError, match="gs://bucket/run: no checkpoint can be written: .*gcsfs"):
        Checkpoints(Path("runs/x"), config.CheckpointConfig(path="gs://bucket/run"))


def test_planned_checkpoints_must_fit_on_the_disk(tmp_path):
    assert disk_space.problems(tmp_path / "run", config.CheckpointConfig(), 1000, 10) == []
    stat = os.statvfs(tmp_path)
    free = stat.f_bavail * stat.f_frsize
    (line,) = disk_space.problems(
        tmp_path / "run", config.CheckpointConfig(keep=2, keep_every=5), free // 5, 10
    )
    assert (
        "up to 6 checkpoints" in line
        and "config.checkpoint.keep=2" in line
        and "2 of config.checkpoint.keep_every=5" in line
    )
    assert (
        disk_space.problems(tmp_path / "run", config.CheckpointConfig(keep=2), free // 5, 10) == []
    )


def test_old_checkpoints_leave_no_space_for_those_of_a_restart(tmp_path):
    """A resumed run overwrites them; --restart keeps them."""
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    stat = os.statvfs(tmp_path)
    free = stat.f_bavail * stat.f_frsize
    with open(tmp_path / "run/checkpoints/old", "wb") as f:
        f.truncate(free)  # a sparse file: it takes no space
    plan = tmp_path / "run", config.CheckpointConfig(keep=2), free // 3, 10
    assert disk_space.problems(*plan) == []
    assert len(disk_space.problems(*plan, restart=True)) == 1


def test_whole_files_replace_what_was_there(tmp_path):
    for values in ([1], [1, 2]):
        files.write_json(tmp_path / "a.json", values)
        assert json.loads((tmp_path / "a.json").read_text()) == values
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
