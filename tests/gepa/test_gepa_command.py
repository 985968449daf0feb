"""The real command with GEPA alone and an endpoint that reflects, refuses fields, fails half of the
time and repeats the key.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from fake_endpoint import ReasoningEndpoint

from tests import toy_runs

ROOT = Path(__file__).parent.parent.parent
KEY = "sk-of-the-command-12345"
SETTINGS = {
    "train.epochs": 0,
    "gepa.schedule": "first",
    "eval.template": "best",
    "gepa.reflector": "api",
    "gepa.min_hard": 4,
    "gepa.max_metric_calls": 60,
    "gepa.reflect_new_tokens": 400,
    "gepa.reflect_temperature": 0.6,
    "gepa.filter_replies": "true",
    "gepa.acceptance": "margin",
    "gepa.acceptance_margin": 0,
    "api.model": "teacher",
    "api.key_env": "('MY_KEY',)",
    "api.backoff_s": 0.01,
    "api.retries": 2,
}


def start(tmp_path, shared, key, url):
    settings = {**toy_runs.settings(shared), **SETTINGS, "api.base_url": url}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    fixed = {
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    kept = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "MY_KEY")}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "p2o_jax.main",
            "--config",
            "configs/smoke.py",
            "--workdir",
            str(tmp_path / "run"),
            *flags,
        ],
        cwd=ROOT,
        env={**kept, **fixed, **key},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_gepa_alone_with_an_endpoint_that_fails_half_of_the_time(tmp_path, shared, compiled):
    toy_runs.finished(shared)  # whose base model this run uses
    with ReasoningEndpoint(
        fault="500",
        rate=0.5,
        reply=lambda prompt: f"```\nadd the numbers {len(prompt)} {KEY}\n```",
    ) as endpoint:
        done = start(tmp_path, shared, {"MY_KEY": KEY}, endpoint.url)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "max_tokens is sent as max_completion_tokens from now on" in done.stderr
    assert "temperature=0.6 is left out from now on" in done.stderr
    assert done.stderr.count("config.api: status 500; the endpoint says: wrong key") == 1
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (phase,) = [row for row in rows if "gepa/skipped" in row]
    counts = endpoint.counts
    assert counts["answered"] > 0 and counts["500"] > 0 and phase["gepa/accepted"] > 0
    assert (
        phase["gepa/api_failures"]
        == phase["gepa/api_failures_server"]
        == phase["gepa/rejected_no_reply"]
    )
    failed = counts["500"] + counts["refused"]
    assert phase["gepa/api_retries"] == failed - phase["gepa/api_failures"]
    assert phase["gepa/api_tokens"] == 110 * counts["answered"] and phase["gepa/skipped"] == 0
    assert [row["step"] for row in rows if "eval/accuracy" in row] == [0, 0] and not any(
        "train/loss" in row for row in rows
    )
    evaluations, candidates = (
        [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
        for name in ("evaluations", "templates")
    )
    best = max(
        (row for row in candidates if "candidate" in row),
        key=lambda row: (row["dev_score"], -row["candidate"]),
    )
    assert [row["template"] for row in evaluations] == ["", best["text"]]
    result = json.loads((run / "result.json").read_text())
    assert (
        result["steps"] == 0
        and result["ledger"]["gepa_reflect"]["api_calls"] == phase["gepa/proposals"]
    )
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    folders = tmp_path, compiled
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert (
        not [path for path in files if KEY.encode() in path.read_bytes()]
        and KEY not in done.stdout + done.stderr
    )


def test_a_key_that_is_not_there_is_told_before_anything_starts(tmp_path, shared):
    done = start(tmp_path, shared, {}, "http://127.0.0.1:9/v1")
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [
        "error: config.api.key_env: the environment variable MY_KEY is not set"
    ]
