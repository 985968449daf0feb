"""Questions asked, answered and judged: the one path of training, GEPA and evaluation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from p2o_jax.data.chat import Chat
from p2o_jax.models import flops
from p2o_jax.progress import Reporter
from p2o_jax.records import Ask, Request, Rollout, Sampling, Verdict
from p2o_jax.rollout.engine import Engine

Verify = Callable[[Sequence[str], Sequence[str]], Sequence[Verdict]]
Cost = Mapping[str, float]


class Answerer:
    """Renders asks, samples responses and has them verified."""

    def __init__(self, engine: Engine, chat: Chat, verify: Verify, reporter: Reporter):
        self.engine, self.chat, self.verify, self.reporter = engine, chat, verify, reporter

    def answer(self, weights: Any, asks: Sequence[Ask], how: Sampling, key: jax.Array, phase: str = "rollout") -> list[Rollout]:
        """A scored rollout for each ask, in order."""
        requests = [Request(self.chat.render(a.question, a.template), a.name) for a in asks]
        with self.reporter.phase(phase, len(asks), "rollouts") as advance:
            completions = self.engine.generate(weights, requests, how, key, advance)
            texts = [self.chat.decode(c.token_ids.tolist()) for c in completions]
        with self.reporter.phase("reward" if phase == "rollout" else phase):
            verdicts = self.verify(texts, [a.question.answer for a in asks])
        return [
            Rollout(ask, request.prompt_ids, self.chat.render(ask.question), completion, text, verdict)
            for ask, request, completion, text, verdict in zip(asks, requests, completions, texts, verdicts, strict=True)
        ]

    def reply(self, weights: Any, prompts: Sequence[str], names: Sequence[str], how: Sampling, key: jax.Array) -> tuple[list[str], Cost]:
        """A reply to each lone user text (reflection), and what they cost."""
        requests = [Request(self.chat.render_text(p), n) for p, n in zip(prompts, names, strict=True)]
        completions = self.engine.generate(weights, requests, how, key)
        spent = self._cost([(r.prompt_ids, len(c.token_ids)) for r, c in zip(requests, completions, strict=True)])
        return [self.chat.decode(c.token_ids.tolist()) for c in completions], spent

    def cost(self, rollouts: Sequence[Rollout]) -> Cost:
        """What rollouts, sampled in one call, cost: for the ledger."""
        return self._cost([(r.prompt_ids, len(r.completion.token_ids)) for r in rollouts])

    def _cost(self, sequences: Sequence[flops.PromptAndLength]) -> Cost:
        return {
            "rollouts": len(sequences),
            "prompt_tokens": sum(len(prompt) for prompt, _ in sequences),
            "generated_tokens": sum(length for _, length in sequences),
            "flops": flops.sampling(self.engine.spec, sequences),
        }
