"""The learner's update on full rows of 4,096 tokens, as a share of the device's operations."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from benchmarks.accelerator import bounds, device
from benchmarks.accelerator.bounds import Rates
from p2o_jax import config
from p2o_jax.models import flops
from p2o_jax.models.spec import ModelSpec, num_params

# Of a parameter: weight and two moments, the sum of gradients, the newest and the clipped ones, and
# new weights, all in float32; the weight in bfloat16; a fifth more for activations.
BYTES_PER_PARAM = 36


class UpdateShape(NamedTuple):
    """A mini-batch of full rows."""

    prompt: int
    response: int
    sequences: int
    micro_rows: int
    updates: int  # that are timed, after the first

    @property
    def row_tokens(self) -> int:
        """Tokens of a sequence, each of which fills a row."""
        return self.prompt + self.response


FULL = UpdateShape(512, 3584, 16, 4, 4)
TINY = UpdateShape(16, 48, 4, 2, 2)


def measure(mesh: Any, rates: Rates, tiny: bool, put: Callable[..., None]) -> None:
    """Puts `mfu` of the data sheet's peak, `of_matmul` of the measured rate, and tokens per second.

    Operations are counted by `models.flops`: neither recomputed layers nor the optimizer. The model
    is Qwen3-1.7B if the device has the memory, else Qwen3-0.6B.

    Args:
        mesh: one device.
        rates: of the device, as measured.
        tiny: a small model and rows of 64 tokens, for a CPU.
        put: receives figures.
    """
    from p2o_jax.rollout.memory import device_bytes

    name, spec = ("tiny", device.TINY) if tiny else largest(device_bytes(mesh))
    shape = TINY if tiny else FULL
    put(model=name, row_tokens=shape.row_tokens)
    begin = time.monotonic()
    learner, state, examples = start(spec, mesh, shape, "float32" if tiny else "bfloat16")
    state = _updated(learner, state, examples)
    put(start_s=bounds.rounded(time.monotonic() - begin))
    seconds = []
    for _ in range(shape.updates):
        begin = time.monotonic()
        state = _updated(learner, state, examples)
        seconds.append(time.monotonic() - begin)
    put(**figures(spec, shape, median(seconds), mesh.devices.flat[0].device_kind, rates))


def largest(memory: int) -> tuple[str, ModelSpec]:
    """Returns the name and spec of the larger model whose update fits into this many bytes; the
    smaller one if none does.
    """
    from p2o_jax.plan.models import SPECS

    names = ("qwen3-1.7b", "qwen3-0.6b")
    fits = (n for n in names if num_params(SPECS[n]) * BYTES_PER_PARAM <= memory)
    name = next(fits, names[-1])
    return name, SPECS[name]


def figures(
    spec: ModelSpec, shape: UpdateShape, seconds: float, device_kind: str, rates: Rates
) -> dict[str, Any]:
    """Returns the figures of an update that takes this many seconds."""
    rate = flops.update(spec, [shape.row_tokens] * shape.sequences) / seconds
    return {
        "mfu": bounds.share(rate, bounds.data_sheet(device_kind).flops),
        "of_matmul": bounds.share(rate, rates.flops),
        "tflops": bounds.rounded(rate / 1e12),
        "tokens_per_s": bounds.rounded(shape.row_tokens * shape.sequences / seconds),
        "update_s": bounds.rounded(seconds),
    }


def start(spec: ModelSpec, mesh: Any, shape: UpdateShape, dtype: str) -> tuple[Any, Any, list[Any]]:
    """Returns a learner, its state with random weights, and examples that fill their rows."""
    import jax.numpy as jnp

    from p2o_jax.rl.batch import Example
    from p2o_jax.rl.learner import Learner

    cfg = config.resolve(
        config.Config(
            data=config.DataConfig(max_prompt_tokens=shape.prompt),
            rollout=config.RolloutConfig(
                questions=shape.sequences,
                group_size=1,
                max_new_tokens=shape.response,
                prompt_buckets=(shape.prompt,),
            ),
            optim=config.OptimConfig(
                minibatch_questions=shape.sequences,
                micro_rows=shape.micro_rows,
                row_tokens=shape.row_tokens,
            ),
        )
    )
    learner = Learner(spec, mesh, cfg, 100, jnp.dtype(dtype), 0)
    state = learner.init(device.random_params(spec, mesh, "float32"))
    rng = np.random.default_rng(0)
    examples = []
    for i in range(shape.sequences):
        prompt = tuple(map(int, rng.integers(0, spec.vocab, shape.prompt)))
        response = rng.integers(0, spec.vocab, shape.response).astype(np.int32)
        advantage, logp_R = (-1.0) ** i, np.zeros(shape.response, np.float32)
        examples.append(Example(prompt, prompt, response, advantage, True, logp_R))
    return learner, state, examples


def _updated(learner: Any, state: Any, examples: list[Any]) -> Any:
    """Returns the state after an update from rollouts that were sampled from it."""
    import jax

    scored, _ = learner.score(state.params, None, examples, len(examples))
    state, _ = learner.update(state, scored)
    return jax.block_until_ready(state)
