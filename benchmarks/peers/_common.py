"""Helpers shared by the peer benchmarks (standard library + numpy only)."""

import argparse
import contextlib
import importlib.metadata as md
import json
import os
import platform
import statistics
import sys
import time

import numpy as np


def base_parser(doc, grpo=False):
    ap = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ap.add_argument("--model", required=True, help="HF-format model directory")
    ap.add_argument("--prompt-len", type=int, default=64)
    ap.add_argument("--new-tokens", type=int, default=128)
    ap.add_argument("--temperature", type=float, default=1.0)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--threads", type=int, default=0, help="torch threads / 0 = library default")
    ap.add_argument("--cpus", default="", help="pin to these CPUs, e.g. 0,1")
    if grpo:
        ap.add_argument("--prompts", type=int, default=8)
        ap.add_argument("--generations", type=int, default=8)
        ap.add_argument(
            "--steps", type=int, default=6, help="total steps; the first is reported as warm-up"
        )
        ap.add_argument("--beta", type=float, default=0.0)
        ap.add_argument("--lr", type=float, default=1e-6)
        ap.add_argument(
            "--micro-batch",
            type=int,
            default=0,
            help="sequences per backward pass, 0 = whole batch",
        )
    else:
        ap.add_argument("--batch", type=int, default=64)
        ap.add_argument("--repeats", type=int, default=5)
        ap.add_argument(
            "--group", type=int, default=1, help="G: each prompt is repeated G times (rollouts)"
        )
    ap.add_argument(
        "--eos-mean",
        type=float,
        default=0,
        help="0: never stop early.  M>0: a random set of V/M token "
        "ids ends a sequence, so lengths are close to "
        "geometric with mean M for a random-init model",
    )
    return ap


def model_config(path):
    with open(os.path.join(path, "config.json")) as fh:
        return json.load(fh)


def eos_ids(args, cfg):
    """Token ids that end a sequence; [] for none."""
    if not args.eos_mean:
        return []
    rng = np.random.default_rng(1234)
    v = cfg["vocab_size"]
    k = max(1, round(v / args.eos_mean))
    return sorted(int(x) for x in rng.choice(np.arange(40, v), k, replace=False))


def prompt_ids(n, length, vocab, seed):
    """[n, length] ids of ordinary words (no specials)."""
    rng = np.random.default_rng(seed)
    return rng.integers(40, vocab, (n, length)).astype(np.int64)


def pin(args):
    """--cpus 0 or 0,1: pin this process (before any thread pool starts)."""
    if args.cpus:
        os.sched_setaffinity(0, [int(x) for x in args.cpus.split(",")])


def rss_mb():
    """The peak resident memory of this process. `ru_maxrss` begins with the starter's peak."""
    with open("/proc/self/status") as f:
        return round(next(int(x.split()[1]) for x in f if x.startswith("VmHWM:")) / 1024, 1)


def lengths_until(tokens, stop):
    """The length of each row, including the first stop id, if any."""
    stop = set(stop)
    out = []
    for row in tokens:
        n = len(row)
        for i, t in enumerate(row):
            if int(t) in stop:
                n = i + 1
                break
        out.append(n)
    return out


def med(xs):
    return statistics.median(xs) if xs else None


def timed_calls(call, steps):
    """Wall-clock and CPU seconds of each call except the first two, which include compilation."""
    wall, cpu = [], []
    for _ in range(steps):
        w, c = time.perf_counter(), time.process_time()
        call()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return wall[2:], cpu[2:]


def versions(*names):
    out = {"python": platform.python_version()}
    for n in names:
        with contextlib.suppress(md.PackageNotFoundError):
            out[n] = md.version(n)
    return out


def emit(**kw):
    kw["peak_rss_mb"] = rss_mb()
    kw["cpus"] = os.cpu_count()
    for k, v in list(kw.items()):
        if isinstance(v, float):
            kw[k] = round(v, 4)
    print(json.dumps(kw), flush=True)
    sys.stdout.flush()
