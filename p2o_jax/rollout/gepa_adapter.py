"""What GEPA calls, on the sharded sampler: candidate evaluation by the policy, and reflection by
whoever reflects.

And the journal of its calls, which a killed phase goes on from.
"""

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax

from p2o_jax import config, gepa
from p2o_jax.rollout import sampling_params
from p2o_jax.rollout.pipeline import Cost, RolloutPipeline
from p2o_jax.runtime import distributed
from p2o_jax.state import Ledger, RunState
from p2o_jax.types import Outcome, Question, Rollout, TemplatedQuestion, digest

T = TypeVar("T")
REFLECT = "gepa_reflect"  # the ledger's name for reflection; evaluation's are "gepa_" and the stage

Transfers = Callable[[Sequence[Rollout]], Sequence[float]]  # Outcome.transfer of rollouts

# (prompts, names, what reflection has cost so far) -> (replies, None for a missing one, and what
# they cost)
Reply = Callable[[Sequence[str], Sequence[str], Cost], tuple[Sequence[str | None], Cost]]


class GepaAdapter:
    """`evaluate` and `reflect` of one prompt phase, and in `ledger` what they cost.

    Calls are numbered, so that no two rollouts of a phase share their randomness, and a phase run
    again makes the same ones. `weights` is asked for the policy, laid out for decoding, at each
    evaluation: reflection may have taken its place. `transfers` is asked about the rollouts that
    succeed where `gepa.reliance` is on; it may be None otherwise.
    """

    def __init__(
        self,
        pipeline: RolloutPipeline,
        weights: Callable[[], Any],
        reply: Reply,
        cfg: config.Config,
        key: jax.Array,
        ledger: Ledger,
        transfers: Transfers | None = None,
    ):
        self.pipeline, self.weights, self.reply, self.key = pipeline, weights, reply, key
        assert transfers or not cfg.gepa.reliance, "gepa.reliance needs transfers"
        self.ledger, self.transfers = ledger, transfers if cfg.gepa.reliance else None
        self.num_calls = 0
        self.stage = "seed"
        self.last_costs: dict[str, Cost] = {}  # of the last call, by phase
        self.evaluation = sampling_params.candidates(cfg)
        self.max_prompt_tokens = config.max_templated_prompt_tokens(cfg)

    def enter(self, stage: str) -> None:
        """Says what the evaluations that follow are for."""
        self.stage = stage

    def evaluate(self, pairs: Sequence[tuple[str, Question]]) -> list[Outcome]:
        """An outcome for each (template, question), all sampled together."""
        start = time.monotonic()
        prompts = [
            TemplatedQuestion(question, template, self._name("evaluate", i))
            for i, (template, question) in enumerate(pairs)
        ]
        rollouts = self.pipeline.sample(
            self.weights(), prompts, self.evaluation, self.key, phase="gepa"
        )
        solved = [r for r in rollouts if r.succeeded]
        transfers = (
            dict(zip((r.prompt.name for r in solved), self.transfers(solved), strict=True))
            if self.transfers
            else {}
        )
        self.book(
            {
                f"gepa_{self.stage}": {
                    **self.pipeline.cost(rollouts),
                    "seconds": time.monotonic() - start,
                }
            }
        )
        return [_outcome(r, transfers.get(r.prompt.name, 0.0)) for r in rollouts]

    def reflect(self, prompts: Sequence[str]) -> list[str | None]:
        """A reply to each reflection prompt, all asked for together; None where there is none."""
        start = time.monotonic()
        names = [self._name("reflect", i) for i in range(len(prompts))]
        with self.pipeline.reporter.phase("gepa"):
            replies, spent = self.reply(prompts, names, self.ledger.costs.get(REFLECT, {}))
        self.book({REFLECT: {**spent, "seconds": time.monotonic() - start}})
        return list(replies)

    def fits(self, template: str, question: Question) -> bool:
        """Whether the question can be asked under the template at all."""
        return len(self.pipeline.chat.render(question, template)) <= self.max_prompt_tokens

    def book(self, costs: dict[str, Cost]) -> None:
        """Adds a call, made now or replayed from a journal, to the ledger and to the number of
        calls.
        """
        self.num_calls += 1
        self.last_costs = costs
        self.ledger = self.ledger.plus(costs)

    def _name(self, stage: str, i: int) -> str:
        return f"{stage}/{self.num_calls}/{i}"


def _outcome(r: Rollout, transfer: float) -> Outcome:
    judged = r.verdict.status in ("correct", "wrong")
    return Outcome(
        r.verdict.answer_score,
        r.verdict.format_score,
        r.text,
        r.verdict.note if judged else "",
        transfer,
    )


class PhaseJournals:
    """The journals of a run's prompt phases: workdir/gepa/journal_epoch_N.jsonl, written by process
    0 and read by all.

    Args:
        settings: a digest of every setting that the calls' answers depend on.
        tell: says a line.
    """

    def __init__(self, workdir: Path, seed: int, settings: str, log: Callable[[str], None]):
        self.directory, self.seed, self.settings, self.log = workdir / "gepa", seed, settings, log

    def resume(self, state: RunState, epoch: int, run: Callable[[gepa.Journal], T]) -> T:
        """What `run` returns with the journal of this epoch's phase, which may hold its first
        calls, or all.

        A journal of another seed, step, hard set or settings, or a damaged one, is set aside and
        told: the phase starts afresh.
        """
        path = self.directory / f"journal_epoch_{epoch}.jsonl"
        phase = (
            f"seed {self.seed}, step {state.step}, {digest(self.settings, *sorted(state.hard_ids))}"
        )

        def set_aside(why: str) -> None:
            self.log(
                f"prompt phase of epoch {epoch} starts afresh, its journal is set aside: {why}"
            )
            distributed.broadcast_from_main(lambda: path.rename(_free_name(path)) and None)

        return gepa.resume(
            lambda: gepa.Journal(path, phase, distributed.is_main_process(), _read_everywhere),
            run,
            set_aside,
        )


def num_set_aside(workdir: Path, epoch: int) -> int:
    """How many journals of this epoch's phase have been set aside."""
    return len(list((workdir / "gepa").glob(f"journal_epoch_{epoch}.jsonl.*")))


def _free_name(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{number}")


def _read_everywhere(path: Path) -> bytes:
    return base64.b64decode(
        distributed.broadcast_from_main(
            lambda: base64.b64encode(path.read_bytes() if path.exists() else b"").decode("ascii")
        )
    )


def settings_digest(values: Mapping[str, Any]) -> str:
    """A digest of JSON settings, whatever the order of their keys."""
    return digest(json.dumps(values, sort_keys=True))
