"""Asks, answers and verifies questions: the one path of training, GEPA and evaluation."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax

from p2o_jax.data.chat import Chat
from p2o_jax.models import flops
from p2o_jax.rollout.engine import Engine
from p2o_jax.runtime import distributed
from p2o_jax.runtime.console import Reporter
from p2o_jax.types import (
    Question,
    Reply,
    Request,
    Rollout,
    SamplingParams,
    TemplatedQuestion,
    Verdict,
)

# (responses, questions) -> verdicts
Verify = Callable[[Sequence[str], Sequence[Question]], Sequence[Verdict]]
Cost = Mapping[str, float]


class RolloutPipeline:
    """Renders questions, samples responses and has them verified. The first responses are verified
    while the last are sampled.

    Args:
        engine: the sampler.
        chat: renders prompts and decodes responses.
        verify: judges responses. It is called in a thread of process 0 only: time limits depend on
            the machine, and no host may decide alone.
        reporter: shows progress.
    """

    def __init__(self, engine: Engine, chat: Chat, verify: Verify, reporter: Reporter):
        self.engine, self.chat, self.reporter = engine, chat, reporter
        self._judge = _Judge(verify)

    def sample(
        self,
        weights: Any,
        prompts: Sequence[TemplatedQuestion],
        sampling: SamplingParams,
        key: jax.Array,
        phase: str = "rollout",
    ) -> list[Rollout]:
        """Returns a scored rollout for each templated question, in order.

        Args:
            weights: params in rollout layout.
            prompts: questions with their templates and names.
            sampling: how tokens are drawn.
            key: key of the call.
            phase: name of the phase in progress reports.
        """
        requests = [
            Request(self.chat.render(a.question, a.template), a.name, a.expected_tokens)
            for a in prompts
        ]
        completions, texts, judged, start = {}, {}, [], time.monotonic()
        with self.reporter.phase(phase, len(prompts), "rollouts") as advance:
            for finished in self.engine.stream(weights, requests, sampling, key):
                completions.update(finished)
                texts |= {i: self.chat.decode(c.token_ids.tolist()) for i, c in finished}
                order = [i for i, _ in finished]
                judged.append(
                    (
                        order,
                        self._judge.begin(
                            [texts[i] for i in order], [prompts[i].question for i in order]
                        ),
                    )
                )
                advance(
                    len(finished),
                    self._note(
                        sum(len(c.token_ids) for c in completions.values()),
                        time.monotonic() - start,
                    ),
                )
        with self.reporter.phase("reward" if phase == "rollout" else phase):
            verdicts = self._judge.end(judged)
        return [
            Rollout(
                prompt,
                request.prompt_ids,
                self.chat.render(prompt.question),
                completions[i],
                texts[i],
                verdicts[i],
            )
            for i, (prompt, request) in enumerate(zip(prompts, requests, strict=True))
        ]

    def reply(
        self,
        weights: Any,
        prompts: Sequence[str],
        names: Sequence[str],
        sampling: SamplingParams,
        key: jax.Array,
    ) -> tuple[list[Reply], Cost]:
        """Returns a reply to each user text (reflection), and the cost.

        Args:
            weights: params in rollout layout.
            prompts: texts of the user.
            names: a name per prompt, which seeds its randomness.
            sampling: how tokens are drawn.
            key: key of the call.
        """
        requests = [
            Request(self.chat.render_text(p), n) for p, n in zip(prompts, names, strict=True)
        ]
        completions = self.engine.generate(weights, requests, sampling, key)
        spent = self._cost(
            [(r.prompt_ids, len(c.token_ids)) for r, c in zip(requests, completions, strict=True)]
        )
        replies = [
            Reply(
                self.chat.decode_thoughts(c.token_ids.tolist()),
                not c.stopped,
                self.chat.opens_thought,
            )
            for c in completions
        ]
        return replies, spent

    def _note(self, tokens: int, seconds: float) -> str:
        work = self.engine.work
        return (
            f"{tokens / max(seconds, 1e-9):,.0f} tokens/s, {work.busy / max(work.computed, 1):.0%}"
            " of slots in use"
        )

    def cost(self, rollouts: Sequence[Rollout]) -> Cost:
        """Returns the cost of rollouts that were sampled in one call, for the ledger."""
        return self._cost([(r.prompt_ids, len(r.completion.token_ids)) for r in rollouts])

    def _cost(self, sequences: Sequence[flops.PromptAndLength]) -> Cost:
        return {
            "rollouts": len(sequences),
            "prompt_tokens": sum(len(prompt) for prompt, _ in sequences),
            "generated_tokens": sum(length for _, length in sequences),
            "flops": flops.sampling(self.engine.spec, sequences),
        }


class _Judge:
    """Calls `verify` in a thread of process 0, one call after another, and broadcasts the verdicts
    to all processes.
    """

    def __init__(self, verify: Verify):
        self.verify = verify
        self._calls: queue.SimpleQueue[tuple[Future[Any], Sequence[str], Sequence[Question]]] = (
            queue.SimpleQueue()
        )
        if distributed.is_main_process():
            # daemon: an aborted run does not wait for it
            threading.Thread(target=self._work, daemon=True, name="verify").start()

    def begin(
        self, texts: Sequence[str], questions: Sequence[Question]
    ) -> "Future[Sequence[Verdict]]":
        """Returns a future of the verdicts. Only process 0 fulfils it."""
        future: Future[Sequence[Verdict]] = Future()
        if distributed.is_main_process():
            self._calls.put((future, texts, questions))
        return future

    def end(
        self, calls: Sequence[tuple[Sequence[int], "Future[Sequence[Verdict]]"]]
    ) -> dict[int, Verdict]:
        """Returns all verdicts by index, on every process. An exception of `verify` is raised on
        every process, too.
        """

        def collect() -> list[tuple[int, tuple[Any, ...]]]:
            pairs = [
                pair for order, future in calls for pair in zip(order, future.result(), strict=True)
            ]
            return [(i, dataclasses.astuple(verdict)) for i, verdict in pairs]

        return {i: _verdict(values) for i, values in distributed.broadcast_from_main(collect)}

    def _work(self) -> None:
        while True:
            future, texts, questions = self._calls.get()
            try:
                future.set_result(self.verify(texts, questions))
            except BaseException as e:
                future.set_exception(e)


def _verdict(values: Sequence[Any]) -> Verdict:
    """A verdict after a round trip through JSON, which has no tuples."""
    verdict = Verdict(*values)
    pairs = tuple((name, score) for name, score in verdict.by_reward)
    return dataclasses.replace(verdict, by_reward=pairs)
