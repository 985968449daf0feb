"""The sampler's speed: equal responses against the bound of the device's memory, and the sequences
of a public benchmark.

Weights are random, and no token ends a response. The engine is the one of training runs; what is
not named here has the defaults of `config.rollout`.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accelerator import bounds, device
from benchmarks.accelerator.bounds import Rates
from p2o_jax.config import RolloutConfig
from p2o_jax.models.spec import ModelSpec
from p2o_jax.types import Request, SamplingParams

TEMPERATURE = 0.6


class Samples(NamedTuple):
    """What is sampled."""

    prompts: Sequence[tuple[int, ...]]
    responses: Sequence[int]  # tokens of each

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Tokens of each prompt and response."""
        return [(len(p), r) for p, r in zip(self.prompts, self.responses, strict=True)]


def equal(spec: ModelSpec, count: int, prompt: int, response: int) -> Samples:
    """Returns random prompts of one length, for responses of one length."""
    drawn = np.random.default_rng(0).integers(0, spec.vocab, (count, prompt))
    return Samples([tuple(map(int, row)) for row in drawn], [response] * count)


def measure_decode(
    mesh: Any, rates: Rates, tiny: bool, put: Callable[..., None], model: str
) -> None:
    """Puts `figures` of 128 responses of 256 tokens to prompts of 512.

    Args:
        mesh: one device.
        rates: of the device, as measured.
        tiny: a small model and few tokens, for a CPU.
        put: receives figures.
        model: a model that `plan` knows.
    """
    spec = device.TINY if tiny else _spec(model)
    _measure(mesh, rates, spec, equal(spec, *((8, 16, 12) if tiny else (128, 512, 256))), tiny, put)


def measure_public(
    mesh: Any, rates: Rates, tiny: bool, put: Callable[..., None], model: str
) -> None:
    """Puts `figures` of the public benchmark's 256 sequences. For the arguments see
    `measure_decode`.
    """
    spec = device.TINY if tiny else _spec(model)
    few = (16, (4, 24), spec.vocab - 1)
    drawn = bounds.public_requests(*few) if tiny else bounds.public_requests()
    _measure(mesh, rates, spec, Samples(*drawn), tiny, put)


def _spec(model: str) -> ModelSpec:
    from p2o_jax.plan.models import SPECS

    return SPECS[model]


def _measure(
    mesh: Any, rates: Rates, spec: ModelSpec, samples: Samples, tiny: bool, put: Callable[..., None]
) -> None:
    import jax

    dtype = "float32" if tiny else "bfloat16"
    engine = make_engine(spec, mesh, samples, dtype)
    put(slots=engine.cfg.slots)
    begin = time.monotonic()
    weights = engine.to_rollout_layout(device.random_params(spec, mesh, dtype))
    sampling = SamplingParams(TEMPERATURE, max(samples.responses))
    engine.programs.compile(engine.needed(sampling, max(map(len, samples.prompts))))
    requests = [
        Request(prompt, f"{i}", max_new_tokens=n)
        for i, (prompt, n) in enumerate(zip(*samples, strict=True))
    ]
    # everything runs once before it is timed: a few tokens of each
    few = SamplingParams(TEMPERATURE, min(4, sampling.max_new_tokens))
    engine.generate(weights, requests, few, jax.random.key(0))
    engine.take_work()
    put(start_s=bounds.rounded(time.monotonic() - begin))
    begin = time.monotonic()
    completions = engine.generate(weights, requests, sampling, jax.random.key(1))
    seconds = time.monotonic() - begin
    sampled = [len(c.token_ids) for c in completions]
    if sampled != list(samples.responses):
        raise RuntimeError(f"sampled {sum(sampled)} tokens, expected {sum(samples.responses)}")
    put(**figures(spec, samples, engine, seconds, rates, dtype))
    engine.close()


def make_engine(spec: ModelSpec, mesh: Any, samples: Samples, dtype: str) -> Any:
    """Returns an engine with a slot for each sequence, or as many as fit into memory, and a prompt
    cache for as many prompts.
    """
    import jax.numpy as jnp

    from p2o_jax.rollout import memory
    from p2o_jax.rollout.engine import Engine

    longest, response = max(map(len, samples.prompts)), max(samples.responses)

    def make(slots: int) -> Engine:
        cfg = RolloutConfig(
            questions=len(samples.prompts),
            group_size=1,
            temperature=TEMPERATURE,
            max_new_tokens=response,
            prompt_buckets=(longest,),
            slots=slots,
            min_slots=0,
            prompt_cache_tokens=slots * longest,
        )
        return Engine(spec, mesh, cfg, [response], [], 0, jnp.dtype(dtype))

    return memory.fitting(make, 0)


def figures(
    spec: ModelSpec, samples: Samples, engine: Any, seconds: float, rates: Rates, dtype: str
) -> dict[str, Any]:
    """Returns tokens per second of a whole call and of decoding alone, and both against their
    bounds by the measured rates: prefill by operations, decoding by bytes read.

    Args:
        spec: the model.
        samples: what was sampled.
        engine: the engine, with the work of this call.
        seconds: of the call.
        rates: of the device, as measured.
        dtype: of weights, keys and values.
    """
    work, tokens, slots = engine.take_work(), sum(samples.responses), engine.cfg.slots
    steps = bounds.decode_steps(samples.lengths, slots)
    least_bytes = bounds.decode_bytes(spec, samples.lengths, steps, dtype)
    row = {
        "tokens_per_s": bounds.rounded(tokens / seconds),
        "decode_tokens_per_s": bounds.rounded(tokens / work.decode_seconds),
        "prompt_tokens": sum(map(len, samples.prompts)),
        "tokens": tokens,
        "seconds": bounds.rounded(seconds),
        "prefill_s": bounds.rounded(work.prefill_seconds),
        "decode_s": bounds.rounded(work.decode_seconds),
        "steps": work.steps,
        "frac_slots_busy": bounds.rounded(work.busy / work.computed),
    }
    if rates.bytes_per_s and rates.flops:
        decode_s = least_bytes / rates.bytes_per_s
        whole_s = decode_s + bounds.prefill_flops(spec, samples.lengths) / rates.flops
        row |= {
            "bound_tokens_per_s": bounds.rounded(tokens / whole_s),
            "of_bound": bounds.share(whole_s, seconds),
            "decode_bound_tokens_per_s": bounds.rounded(tokens / decode_s),
            "decode_of_bound": bounds.share(decode_s, work.decode_seconds),
        }
    return row


DECODE = {
    name: functools.partial(measure_decode, model=f"qwen3-{name}") for name in ("0.6b", "1.7b")
}
PUBLIC = functools.partial(measure_public, model="qwen3-0.6b")
