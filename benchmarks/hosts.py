"""Host time of a step: `python -m benchmarks.hosts [--sizes 16,32,64,128] [--steps 3]`.

Runs the real rollout and update phases on eight fake devices, with groups of six and responses of
1,024 tokens, half of the questions under templates. This covers assignment, the chat template,
waves, queues, packing, decoding of texts, distribution of verdicts, advantages, statistics and
records. With `--profile true`, also profiles the host code.

- Compiled programs are replaced by ones that return arrays of the right shapes, and their time is
  excluded. Transfers to and from the devices are included.
- The verifier is replaced by one that is always done, because it works concurrently with the
  sampler. For its figures, see benchmarks.verifier.
- Checkpoints are excluded.

Figures are CPU seconds of the process, because wall-clock time on a shared machine is unreliable.
The share is relative to the lower bounds on step times in docs/scale.md, assuming that the cores of
a TPU host are as fast as this machine's.
"""

import cProfile
import io
import itertools
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.report import Target
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.config.ranges import COUNT
from p2o_jax.main import command

MODEL = Path(__file__).parent.parent / "tests/golden/hf/qwen3_tied"  # used for its tokenizer
# Prompts have about half of the allowed tokens.
DEVICES, GROUP, RESPONSE, PROMPT = (
    8,
    6,
    1024,
    320,
)
# Seconds of a step of 128 questions, from docs/scale.md.
STEP_S = {
    "0.6B on v5e:2x4": 13.0,
    "4B on v5p:2x2x4": 165.0,
}
TARGETS = {"host's share of a step": Target("frac_of_0.6B on v5e:2x4", "<=", 0.05)}


class Clock:
    """CPU seconds spent in code that replaces device code."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def apart(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begin = time.process_time()
            try:
                return run(*args)
            finally:
                self.seconds += time.process_time() - begin

        return timed


class FakePrograms:
    """Replaces `rollout.program_cache.ProgramCache`.

    Every decode chunk ends the next eighth of each queue.
    """

    def __init__(self, engine: Any, clock: Clock):
        self.engine, self.clock = engine, clock
        self.at: int = 0

    def __getitem__(self, program: Any) -> Any:
        return self.clock.apart(
            {"decode": self.decode, "slots": self.begin}.get(program.kind, lambda *args: None)
        )

    def begin(self) -> None:
        self.at = 0

    def decode(self, weights: Any, prompt_cache: Any, queue: Any, *rest: Any) -> Any:
        from p2o_jax.rollout.decode_state import DecodeChunk
        from p2o_jax.rollout.programs import CHUNKS_PER_WAVE
        from p2o_jax.runtime import distributed

        size_S = np.asarray(queue.size).reshape(-1)
        shards, enough = len(size_S), -(-self.engine.max_rollouts // CHUNKS_PER_WAVE)
        # the number of rollouts that a chunk may end
        size = min(enough + self.engine.sizes[0], self.engine.max_rollouts)
        first, self.at = self.at, self.at + enough
        number_S = np.clip(size_S - first, 0, enough)
        rollout_SF = np.minimum(first + np.arange(size), self.engine.max_rollouts - 1)[None].repeat(
            shards, 0
        )
        left = int(max(size_S - self.at).clip(0))
        shape = (shards * size, RESPONSE)
        token_FS = np.random.default_rng(first).integers(10, 300, shape, np.int32)
        whole = np.ones(shards, np.int32)
        out = (
            rollout_SF.reshape(-1).astype(np.int32),
            token_FS,
            np.full(shape, -1.0, np.float32),
            np.full(shards * size, RESPONSE, np.int32),
            number_S.astype(np.int32),
            *(whole * n for n in (left, 0, RESPONSE, RESPONSE, RESPONSE)),
        )
        return None, DecodeChunk(*(distributed.put(x, self.engine.rows) for x in out))


COMMAND_LINE = CommandLine(
    "benchmarks.hosts",
    __doc__,
    Flag("sizes", "Questions per step", [16, 32, 64, 128], kind=int, within=COUNT, several=True),
    Flag("steps", "Steps of each size", 3, kind=int, within=COUNT),
    Flag("profile", "Also profile the host code", False, kind=bool),
    settings=False,
)


def run(argv: Sequence[str]) -> None:
    """Measures and reports.

    Raises:
        ConfigError: the flags are invalid.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    profile = cProfile.Profile() if flags["profile"] else None
    sizes = {}
    for questions in flags["sizes"]:
        sizes[questions] = measure(questions, flags["steps"], profile)
        print(f"{questions} questions: {sizes[questions]}", file=sys.stderr, flush=True)
    if profile:
        text = io.StringIO()
        pstats.Stats(profile, stream=text).sort_stats("cumulative").print_stats(45)
        print(text.getvalue(), file=sys.stderr)
    host_s = sizes[max(sizes)]["host_s"]
    figures = {"by_questions": sizes, "host_s": host_s} | {
        f"frac_of_{name}": round(host_s / s, 4) for name, s in STEP_S.items()
    }
    report.finish("hosts", figures, TARGETS)


def measure(questions: int, steps: int, profile: cProfile.Profile | None) -> dict[str, float]:
    """Median CPU seconds of the host in a step, by activity, and the number of rollouts."""
    from p2o_jax import train
    from p2o_jax.rl.learner import TrainState
    from p2o_jax.runtime import distributed
    from p2o_jax.runtime.console import Reporter
    from p2o_jax.startup import components
    from p2o_jax.state import Assignment, RunState
    from p2o_jax.types import Verdict

    clock, verdicts = Clock(), itertools.cycle([1.0, 0.0, 0.0])
    with tempfile.TemporaryDirectory() as folder:
        cfg = settings(questions, Path(folder))
        distributed.start(cfg.mesh, "")
        components.sampling_programs = lambda cfg, engine: []  # nothing is compiled
        parts: Any = components.Components(cfg, Path(folder) / "run", Reporter(enabled=False))
        engine, learner = parts.engine, parts.learner
        engine.programs = FakePrograms(engine, clock)
        engine._to_layout = lambda params: params
        parts.pipeline._judge.verify = lambda texts, asked: [
            Verdict(next(verdicts), 1.0, "correct") for _ in texts
        ]
        sums = dict.fromkeys(sums_of(learner), 1.0) | {"bad": 0.0}
        learner._score = clock.apart(
            lambda params, rows, count: distributed.put(
                np.zeros(rows.token.shape, np.float32), rows.token.sharding
            )
        )
        learner._update = clock.apart(lambda state, frozen, rows, count: (state, sums))
        parts.record.open(0, 0)
        templates = [
            f"Strategy number {z}: think about the units first. " + "Check each step. " * 11
            for z in range(16)
        ]
        given = {
            q.id: tuple(templates[(n + g) % 16] if g < 4 else "" for g in range(GROUP))
            for n, q in enumerate(parts.questions.questions)
            if n % 2
        }
        state = RunState(TrainState({}, {}, np.int32(0)), tick=1, assignment=Assignment(given))
        seconds = []
        for step in range(steps + 1):
            begin, device = time.process_time(), clock.seconds
            if profile and step:
                profile.enable()
            state = train.policy_step(cfg, parts, state)
            if profile and step:
                profile.disable()
            seconds.append(time.process_time() - begin - (clock.seconds - device))
        parts.close()
    return {
        "rollouts": questions * GROUP,
        "host_s": round(median(seconds[1:]), 3),
        "first_host_s": round(seconds[0], 3),
    }


def sums_of(learner: Any) -> list[str]:
    """The names of the sums that an update computes."""
    import jax
    import jax.numpy as jnp

    one = learner._pack([], 64, 1).rows
    return list(
        jax.eval_shape(learner._step.update, learner.abstract_state(), {}, one, jnp.int32(1))[1]
    )


def settings(questions: int, folder: Path) -> Any:
    from p2o_jax import config
    from p2o_jax.config import Config

    path = folder / "questions.jsonl"
    text = (
        "A train leaves at {i} o'clock and drives {i} miles an hour; how far has it come when"
        " another one overtakes it? Explain it well."
    )
    path.write_text(
        "".join(
            json.dumps({"question": text.format(i=i), "answer": str(i)}) + "\n"
            for i in range(questions)
        )
    )
    base = config.resolve(Config())
    return replace(
        base,
        model=replace(base.model, path=str(MODEL)),
        data=replace(
            base.data, path=str(path), prompt_template="{question}", max_prompt_tokens=PROMPT
        ),
        mesh=replace(base.mesh, cpu_devices=DEVICES),
        rollout=replace(
            base.rollout,
            questions=questions,
            group_size=GROUP,
            max_new_tokens=RESPONSE,
            prompt_buckets=(PROMPT, 2 * PROMPT),
            slots=768,
            min_slots=0,
            prompt_cache_tokens=2**19,
        ),
        optim=replace(base.optim, minibatch_questions=questions // 2, micro_rows=DEVICES),
        gepa=replace(base.gepa, reflector="api", max_template_tokens=PROMPT),
        api=replace(base.api, base_url="http://localhost:9/v1", model="none", key_env=()),
        reward=replace(base.reward, kind="exact"),
        train=replace(base.train, epochs=1000),
    )


if __name__ == "__main__":
    command(run)
