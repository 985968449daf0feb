"""The score command on meshes and by several processes: the scores are those of one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from p2o_jax import score
from p2o_jax.config import ConfigError
from p2o_jax.models import hf, transformer
from tests.factories import make_spec

ROOT = Path(__file__).parents[2]
VOCAB = 193  # no even number of devices divides it


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(a model directory without a tokenizer, tokens, their scores on a mesh without `tensor`)"""
    folder = tmp_path_factory.mktemp("score")
    spec = make_spec(vocab=VOCAB)
    params = transformer.init(spec, jax.random.key(0), "float32")
    hf.save(folder / "model", spec, params, dtype="float32")
    ids = np.random.default_rng(0).integers(0, VOCAB, (3, 12)).astype(np.int32)
    ids[0, 0] = VOCAB - 1
    np.savez(folder / "t.npz", input_ids=ids, attention_mask=np.arange(12) < [[12], [7], [9]])
    model, tokens = folder / "model", folder / "t.npz"
    return model, tokens, scores(model, tokens, folder / "plain.npz")


def scores(model, tokens, out, *flags):
    score.run([f"--model={model}", f"--tokens={tokens}", f"--out={out}", *flags])
    return np.load(out)["token_logprobs"]


def test_a_vocabulary_that_the_mesh_does_not_divide_is_padded(files, tmp_path):
    model, tokens, expected = files
    assert (expected[0, 1:] < 0).all()
    split = scores(model, tokens, tmp_path / "split.npz", "--config.mesh.tensor=2")
    np.testing.assert_allclose(split, expected, atol=1e-5)


def test_two_processes_of_the_asked_devices_score_as_one(files, tmp_path):
    """Each with `mesh.cpu_devices`, which JAX must be started by; process 0 writes."""
    model, tokens, expected = files
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    outs = [tmp_path / str(i) / "out.npz" for i in range(2)]
    started = []
    for i, out in enumerate(outs):
        out.parent.mkdir()
        group = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(i),
        }
        command = [
            *(sys.executable, "-m", "p2o_jax.score"),
            *(f"--model={model}", f"--tokens={tokens}", f"--out={out}"),
            *("--config.mesh.cpu_devices=2", "--config.mesh.tensor=2"),
        ]
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **group}, stderr=subprocess.PIPE, text=True
            )
        )
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    np.testing.assert_allclose(np.load(outs[0])["token_logprobs"], expected, atol=1e-5)
    assert not outs[1].exists()


def test_everything_wrong_with_tokens_and_model_is_reported_together(files, tmp_path):
    model = files[0]
    np.savez(
        tmp_path / "t.npz",
        input_ids=np.full((1, 40), VOCAB),
        attention_mask=np.ones((1, 40), np.int32),
    )
    flags = [f"--model={model}", f"--tokens={tmp_path / 't.npz'}", f"--out={tmp_path / 'o.npz'}"]
    with pytest.raises(ConfigError) as e:
        score.run([*flags, "--config.mesh.tensor=3"])
    assert len(e.value.problems) == 2, e.value.problems
