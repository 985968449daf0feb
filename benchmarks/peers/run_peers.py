#!/usr/bin/env python3
"""Run the peer benchmarks in interleaved rounds; append JSON lines to --out.

  python run_peers.py --trl-python trlenv/bin/python \
      --tunix-python tunixenv/bin/python --models models \
      --suite generate --rounds 3 --cpus 1 --out results.jsonl
  python run_peers.py --summarise results.jsonl

Rounds are interleaved so that noise from other users of the machine falls on
every framework alike.  Report medians; `cpu_s` (process CPU seconds) is the
figure least touched by contention.
"""

import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SUITES = {
    # name: [(env, script, extra flags)]
    "generate": [
        ("trl", "hf_generate.py", []),
        ("trl", "hf_generate.py", ["--cache", "static"]),
        ("tunix", "tunix_generate.py", []),
    ],
    "group": [
        ("trl", "hf_generate.py", ["--group", "8", "--prompt-len", "512"]),
        ("tunix", "tunix_generate.py", ["--group", "8", "--prompt-len", "512"]),
    ],
    "geometric": [
        ("trl", "hf_generate.py", ["--eos-mean", "48", "--new-tokens", "256"]),
        ("tunix", "tunix_generate.py", ["--eos-mean", "48", "--new-tokens", "256"]),
    ],
    "grpo": [("trl", "trl_grpo.py", []), ("tunix", "tunix_grpo.py", [])],
    "grpo_gc": [
        ("trl", "trl_grpo.py", ["--gradient-checkpointing"]),
        ("trl", "trl_grpo.py", ["--continuous-batching"]),
    ],
}
KEY = (
    "bench",
    "model",
    "batch",
    "group",
    "prompt_len",
    "new_tokens",
    "eos_mean",
    "cache",
    "gradient_checkpointing",
    "continuous_batching",
    "beta",
    "pinned",
)
SHOW = (
    "tokens_per_s",
    "step_s",
    "cpu_s",
    "compile_s",
    "rollout_s",
    "update_s",
    "mean_len",
    "peak_rss_mb",
)


def summarise(path):
    rows = collections.defaultdict(list)
    with open(path) as fh:
        for line in fh:
            r = json.loads(line)
            rows[tuple((k, r.get(k)) for k in KEY if r.get(k) not in (None, False))].append(r)
    for k, rs in rows.items():
        print(" ".join(f"{a}={b}" for a, b in k), f"n={len(rs)}")
        print(
            "   ",
            " ".join(
                f"{s}={statistics.median(r[s] for r in rs):.3g}"
                for s in SHOW
                if all(s in r for r in rs)
            ),
        )


def main():
    ap = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--trl-python", default=sys.executable)
    ap.add_argument("--tunix-python", default=sys.executable)
    ap.add_argument("--models")
    ap.add_argument("--sizes", default="nano,small")
    ap.add_argument("--suite", default="generate,group,geometric,grpo")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--cpus", default="")
    ap.add_argument("--repeats", type=int, default=3)
    ap.add_argument("--steps", type=int, default=5)
    ap.add_argument("--out", default="results.jsonl")
    ap.add_argument("--summarise")
    a = ap.parse_args()
    if a.summarise:
        return summarise(a.summarise)
    py = {"trl": a.trl_python, "tunix": a.tunix_python}
    for rnd in range(a.rounds):
        for size in a.sizes.split(","):
            for suite in a.suite.split(","):
                for env, script, extra in SUITES[suite]:
                    cmd = [
                        py[env],
                        os.path.join(HERE, script),
                        "--model",
                        os.path.join(a.models, size),
                        *extra,
                    ]
                    cmd += (
                        ["--steps", str(a.steps)]
                        if "grpo" in suite
                        else ["--repeats", str(a.repeats)]
                    )
                    if a.cpus:
                        n = len(a.cpus.split(","))
                        cmd += ["--cpus", a.cpus]
                        cmd += ["--threads", str(n)] if env == "trl" else []
                    t = time.time()
                    p = subprocess.run(cmd, capture_output=True, text=True)
                    last = [x for x in p.stdout.splitlines() if x.startswith('{"bench"')]
                    if not last:
                        print("FAILED", " ".join(cmd), p.stderr[-800:], flush=True)
                        continue
                    r = json.loads(last[-1])
                    r.update(suite=suite, round=rnd, pinned=a.cpus, load=os.getloadavg()[0])
                    with open(a.out, "a") as fh:
                        fh.write(json.dumps(r) + "\n")
                    print(
                        f"{size} {suite} {script} {extra} "
                        f"tok/s={r.get('tokens_per_s'):.0f} "
                        f"step={r['step_s']:.2f} cpu={r.get('cpu_s'):.2f} "
                        f"({time.time() - t:.0f}s, load {r['load']:.1f})",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
