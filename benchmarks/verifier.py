"""The verifier on hostile answers: `python -m benchmarks.verifier [--answers 20000]`.

Judges easy answers (plain numbers, which need no worker), answers for math-verify, and hostile
ones, shuffled and in batches of a training step's size. No answer may hang or break the pool, and
each must get a verdict. Answers with a known truth must get the right verdict, or none: on a busy
machine math-verify may exceed the deadline.
"""

import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import report
from benchmarks.report import Target
from p2o_jax import config
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT, SECONDS, Range
from p2o_jax.main import command
from p2o_jax.rewards.verify import Verifier

TARGETS = {
    "every answer has a verdict": Target("frac_judged", ">=", 1.0),
    "no verdict is the other one": Target("wrong_verdicts", "<=", 0),
    "easy answers": Target("easy_per_s", ">=", 2000),
    "no batch waits for long": Target("longest_batch_s", "<=", 60),
}
BATCH = 500
ALONE = 1000  # answers that are also judged one at a time, to measure latencies
DISTINCT_HANGING = 5  # distinct answers per hostile kind: each one may take the whole deadline

# Response, reference answer, and the status that it must get (None for any).
Pair = tuple[str, str, str | None]


def boxed(content: str) -> str:
    return rf"So the answer is \boxed{{{content}}}."


def easy(rng: random.Random) -> Pair:
    """A plain number compared with a plain number, right or wrong, in one of its notations."""
    a, b = rng.randint(-9999, 9999), rng.randint(2, 99)
    right = rng.random() < 0.5
    spelling = rng.choice(
        (f"{a}", f" {a}. ", f"${a}$", f"{a}.0", rf"\frac{{{a * b}}}{{{b}}}" if a >= 0 else f"{a}")
    )
    return boxed(spelling), str(a if right else a + 1), "correct" if right else "wrong"


def symbolic(rng: random.Random) -> Pair:
    """An answer that math-verify has to decide."""
    n = rng.randint(2, 60)
    right = rng.random() < 0.5
    left, true, false = rng.choice(
        (
            (rf"\sqrt{{{n * n * 2}}}", rf"{n}\sqrt{{2}}", rf"{n + 1}\sqrt{{2}}"),
            (f"(x+{n})^2", f"x^2+{2 * n}x+{n * n}", f"x^2+{2 * n}x+{n * n + 1}"),
            (f"2^{{{n}}}", str(2**n), str(2**n + 1)),
            (f"({n},{n + 1})", rf"\left( {n}, {n + 1} \right)", f"({n + 1},{n})"),
            (rf"\{{{n},1\}}", rf"\{{1,{n}\}}", rf"\{{2,{n + 1}\}}"),
        )
    )
    return boxed(true if right else false), left, "correct" if right else "wrong"


HOSTILE: dict[str, Callable[[random.Random], str]] = {
    "power tower": lambda r: "9^{" * r.randint(3, 6) + "9" + "}" * 6,
    "exponent": lambda r: f"{r.randint(2, 9)}^{{{10 ** r.randint(8, 300)}}}",
    "factorial tower": lambda r: "(" * 5 + str(r.randint(9, 30)) + "!)" * 5,
    "nested fractions": lambda r: r"\frac{1}{" * (d := r.randint(50, 400)) + "1" + "}" * d,
    "endless fraction": lambda r: r"1+\cfrac{1}{" * (d := r.randint(50, 400)) + r"\ddots" + "}" * d,
    "nested roots": lambda r: r"\sqrt{" * (d := r.randint(50, 500)) + "2" + "}" * d,
    "nested braces": lambda r: "{" * (d := r.randint(100, 2000)) + "}" * d,
    "parentheses": lambda r: "(" * r.randint(100, 4000),
    "backslashes": lambda r: "\\" * r.randint(100, 4000),
    "NUL bytes": lambda r: "\x00" * r.randint(1, 100),
    "control characters": lambda r: "".join(chr(r.randint(0, 31)) for _ in range(50)),
    "surrogates": lambda r: "".join(chr(r.randint(0xD800, 0xDFFF)) for _ in range(20)),
    "unicode digits": lambda r: "".join(
        chr(r.choice((0x660, 0x966, 0xFF10, 0x1D7CE)) + r.randint(0, 9)) for _ in range(10)
    ),
    "long number": lambda r: "1" * r.randint(4000, 5000),
    "long decimal": lambda r: "0." + "3" * r.randint(300, 4000),
    "megabyte": lambda r: r.choice("x1 {") * 1_000_000,
    "code": lambda r: r.choice(
        ("__import__('os').system('false')", "exec('while 1: pass')", "open('x','w')")
    ),
    "LaTeX soup": lambda r: "".join(
        r.choice((r"\frac", *"{}^_x1&", r"\sum", r"\int", r"\left(", r"\\")) for _ in range(80)
    ),
    "matrix": lambda r: r"\begin{pmatrix}" + "1&2\\\\" * r.randint(10, 300) + r"\end{pmatrix}",
    "sum": lambda r: (
        rf"\sum_{{n=1}}^{{{10 ** r.randint(5, 30)}}} \frac{{1}}{{n^{r.randint(2, 9)}}}"
    ),
    "product": lambda r: "(x+1)" * r.randint(20, 300),
    "binomial": lambda r: rf"\binom{{{10 ** r.randint(6, 12)}}}{{{10 ** r.randint(5, 6)}}}",
    "integral": lambda r: rf"\int_0^1 e^{{x^{{{r.randint(3, 30)}}}}} \sin(x^x) dx",
    "equations": lambda r: ", ".join(f"x_{{{i}}}={i}" for i in range(r.randint(20, 200))),
}


def hostile(rng: random.Random, drawn: dict[str, list[str]], distinct: int) -> Pair:
    """A hostile answer, one of `distinct` of a random kind, with a plain or symbolic reference."""
    kind = rng.choice(sorted(HOSTILE))
    if len(drawn.setdefault(kind, [])) < distinct:
        drawn[kind].append(HOSTILE[kind](rng))
    return boxed(rng.choice(drawn[kind])), rng.choice(("5", r"\sqrt{2}")), None


_FRACTION = Range(ge=0, le=1)
COMMAND_LINE = CommandLine(
    "benchmarks.verifier",
    __doc__,
    Flag("answers", "Answers to judge", 20000, kind=int, within=COUNT),
    Flag("workers", "Verifier processes", 2, kind=int, within=COUNT),
    Flag("timeout_s", "Seconds per answer", 2.0, kind=float, within=SECONDS),
    Flag("hostile", "Fraction of hostile answers", 0.05, kind=float, within=_FRACTION),
    Flag("symbolic", "Fraction of answers for math-verify", 0.15, kind=float, within=_FRACTION),
    Flag("seed", "Seed of the answers", "0"),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Runs and reports.

    Raises:
        ConfigError: the flags are invalid.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    figures = measure(
        flags["answers"],
        flags["hostile"],
        flags["symbolic"],
        config.RewardConfig(workers=flags["workers"], timeout_s=flags["timeout_s"]),
        random.Random(flags["seed"]),
    )
    report.finish("verifier", figures, TARGETS)


def measure(
    count: int,
    frac_hostile: float,
    frac_symbolic: float,
    cfg: config.RewardConfig,
    rng: random.Random,
) -> dict[str, Any]:
    """The figures of a number of answers.

    Args:
        count: the number of answers.
        frac_hostile: the fraction of hostile answers.
        frac_symbolic: the fraction of answers for math-verify.
        cfg: the verifier's settings.
        rng: draws the answers.
    """
    drawn: dict[str, list[str]] = {}
    pairs: list[Pair] = []
    for _ in range(count):
        draw = rng.random()
        if draw < frac_hostile:
            pairs.append(hostile(rng, drawn, DISTINCT_HANGING))
        else:
            pairs.append(symbolic(rng) if draw < frac_hostile + frac_symbolic else easy(rng))
    easy_pairs = [easy(rng) for _ in range(20_000)]
    statuses, wrong, late, longest = Counter[str](), [], 0, 0.0
    with Verifier(cfg) as verifier:
        begin = time.perf_counter()
        verifier.verify([p[0] for p in easy_pairs], [p[1] for p in easy_pairs])
        easy_s = time.perf_counter() - begin
        assert verifier.counts["slow"] == 0
        verifier.verify([boxed(r"\sqrt{8}")], [r"2\sqrt{2}"])  # the first worker starts
        begin = time.perf_counter()
        for first in range(0, count, BATCH):
            batch = pairs[first : first + BATCH]
            batch_begin = time.perf_counter()
            verdicts = verifier.verify([p[0] for p in batch], [p[1] for p in batch])
            longest = max(longest, time.perf_counter() - batch_begin)
            statuses.update(v.status for v in verdicts)
            known = [(p, v.status) for p, v in zip(batch, verdicts, strict=True) if p[2]]
            late += sum(status == "time_out" for _, status in known)
            wrong += [(p, status) for p, status in known if status not in (p[2], "time_out")]
            print(f"{first + len(batch)}/{count}  {dict(statuses)}", file=sys.stderr, flush=True)
        seconds = time.perf_counter() - begin
        counts = dict(verifier.counts)
        alone = [_seconds(verifier, pair) for pair in pairs[:ALONE]]
    for pair, status in wrong[:10]:
        print(f"{status}, not {pair[2]}: {pair[0][:100]!r} for {pair[1]!r}", file=sys.stderr)
    return {
        "answers": count,
        "frac_judged": sum(statuses.values()) / count,
        "statuses": dict(statuses),
        "wrong_verdicts": len(wrong),
        "not_hostile_but_late": late,
        "easy_per_s": round(len(easy_pairs) / easy_s),
        "answers_per_s": round(count / seconds),
        "seconds": round(seconds, 1),
        "longest_batch_s": round(longest, 2),
        "p50_ms": round(1000 * statistics.median(alone), 3),
        "p99_ms": round(1000 * statistics.quantiles(alone, n=100)[98], 1),
        "max_ms": round(1000 * max(alone), 1),
        "counts": counts,
    }


def _seconds(verifier: Verifier, pair: Pair) -> float:
    begin = time.perf_counter()
    verifier.verify([pair[0]], [pair[1]])
    return time.perf_counter() - begin


if __name__ == "__main__":
    command(run)
