"""GEPA's two callables on the sharded sampler: evaluation of candidates by the policy, and
reflection.

Also the journals of a run's prompt phases, from which an interrupted phase resumes.
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
from p2o_jax.rollout.reflectors import Reflector
from p2o_jax.runtime import distributed
from p2o_jax.state import Ledger, RunState
from p2o_jax.types import Outcome, Question, Reply, Rollout, TemplatedQuestion, digest

T = TypeVar("T")
REFLECT = "gepa_reflect"  # ledger phase of reflection; evaluation has "gepa_" + stage


class GepaAdapter:
    """`evaluate` and `reflect` of one prompt phase. `ledger` accumulates their cost.

    Calls are numbered: no two rollouts of a phase share their randomness, and a repeated phase
    makes the same calls.

    Args:
        pipeline: samples and scores rollouts.
        weights: returns the policy in rollout layout. It is called at each evaluation, because
            reflection may replace the weights.
        reflector: answers reflection prompts.
        cfg: the whole config, resolved.
        key: key of the phase.
        ledger: costs so far.
    """

    def __init__(
        self,
        pipeline: RolloutPipeline,
        weights: Callable[[], Any],
        reflector: Reflector,
        cfg: config.Config,
        key: jax.Array,
        ledger: Ledger,
    ):
        self.pipeline, self.weights, self.reflector, self.key = pipeline, weights, reflector, key
        self.ledger = ledger
        self.num_calls = 0
        self.stage = "seed"
        self.last_costs: dict[str, Cost] = {}  # cost of the last call, by phase
        self.evaluation = sampling_params.candidates(cfg)
        self.max_prompt_tokens = config.max_templated_prompt_tokens(cfg)

    def enter(self, stage: str) -> None:
        """Sets the stage that the following evaluations belong to."""
        self.stage = stage

    def evaluate(self, pairs: Sequence[tuple[str, Question]]) -> list[Outcome]:
        """Returns an outcome for each (template, question). All are sampled together."""
        start = time.monotonic()
        prompts = [
            TemplatedQuestion(question, template, self._name("evaluate", i))
            for i, (template, question) in enumerate(pairs)
        ]
        rollouts = self.pipeline.sample(
            self.weights(), prompts, self.evaluation, self.key, phase="gepa"
        )
        self.book(
            {
                f"gepa_{self.stage}": {
                    **self.pipeline.cost(rollouts),
                    "seconds": time.monotonic() - start,
                }
            }
        )
        return [_outcome(r) for r in rollouts]

    def reflect(self, prompts: Sequence[str]) -> list[Reply | None]:
        """Returns a reply to each reflection prompt, None where there is none. All are requested
        together.
        """
        start = time.monotonic()
        names = [self._name("reflect", i) for i in range(len(prompts))]
        with self.pipeline.reporter.phase("gepa"):
            replies, spent = self.reflector(prompts, names, self.ledger.costs.get(REFLECT, {}))
        self.book({REFLECT: {**spent, "seconds": time.monotonic() - start}})
        return list(replies)

    def fits(self, template: str, question: Question) -> bool:
        """Whether the question fits the prompt limit under the template."""
        return len(self.pipeline.chat.render(question, template)) <= self.max_prompt_tokens

    def book(self, costs: dict[str, Cost]) -> None:
        """Counts a call, whether made now or replayed from a journal, and adds its cost to the
        ledger.
        """
        self.num_calls += 1
        self.last_costs = costs
        self.ledger = self.ledger.plus(costs)

    def _name(self, stage: str, i: int) -> str:
        return f"{stage}/{self.num_calls}/{i}"


def _outcome(r: Rollout) -> Outcome:
    judged = r.verdict.status in ("correct", "wrong")
    return Outcome(
        r.verdict.answer_score,
        r.verdict.format_score,
        r.text,
        r.verdict.note if judged else "",
    )


class PhaseJournals:
    """The journals of a run's prompt phases: workdir/gepa/journal_epoch_N.jsonl, written by process
    0 and read by all.

    Args:
        workdir: the run directory.
        seed: seed of the run.
        settings: digest of every setting that the calls' answers depend on.
        log: prints a line.
    """

    def __init__(self, workdir: Path, seed: int, settings: str, log: Callable[[str], None]):
        self.directory, self.seed, self.settings, self.log = workdir / "gepa", seed, settings, log

    def resume(self, state: RunState, epoch: int, run: Callable[[gepa.Journal], T]) -> T:
        """Returns what `run` returns with the journal of this epoch's phase, which may hold some or
        all of its calls.

        A damaged journal, or one of another seed, step, hard set or settings, is renamed and
        logged, and the phase starts over.
        """
        path = self.directory / f"journal_epoch_{epoch}.jsonl"
        phase = (
            f"seed {self.seed}, step {state.step}, {digest(self.settings, *sorted(state.hard_ids))}"
        )

        def retire(reason: str) -> None:
            self.log(
                f"prompt phase of epoch {epoch} starts over; its journal was renamed: {reason}"
            )
            distributed.broadcast_from_main(lambda: path.rename(_free_name(path)) and None)

        return gepa.resume(
            lambda: gepa.Journal(
                path, phase, distributed.is_main_process(), _read_on_all_processes
            ),
            run,
            retire,
        )


def num_set_aside(workdir: Path, epoch: int) -> int:
    """Returns how many journals of this epoch's phase have been renamed because they did not
    match.
    """
    return len(list((workdir / "gepa").glob(f"journal_epoch_{epoch}.jsonl.*")))


def _free_name(path: Path) -> Path:
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{number}")


def _read_on_all_processes(path: Path) -> bytes:
    return base64.b64decode(
        distributed.broadcast_from_main(
            lambda: base64.b64encode(path.read_bytes() if path.exists() else b"").decode("ascii")
        )
    )


def settings_digest(values: Mapping[str, Any]) -> str:
    """Returns a digest of JSON settings, independent of the order of keys."""
    return digest(json.dumps(values, sort_keys=True))
