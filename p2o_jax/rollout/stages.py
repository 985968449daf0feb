"""What GEPA calls, on the sharded sampler: candidate evaluation by the policy, and reflection by the policy or its frozen start."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from p2o_jax import config
from p2o_jax.records import Ask, Ledger, Outcome, Question, Sampling
from p2o_jax.rollout.answer import Answerer, cost


class Stages:
    """`evaluate` and `reflect` of one prompt phase, and in `ledger` what they cost.

    Calls are numbered, so that no two rollouts of a phase share their randomness, and a phase run again makes the same ones.
    """

    def __init__(self, answerer: Answerer, weights: Any, reflector_weights: Any, cfg: config.Config, key: jax.Array, ledger: Ledger):
        assert cfg.gepa.temperature is not None, "config.gepa must be resolved"
        self.answerer, self.weights, self.reflector_weights, self.key = answerer, weights, reflector_weights, key
        self.ledger = ledger
        self.num_calls = 0
        self.evaluation = Sampling(cfg.gepa.temperature, cfg.rollout.max_new_tokens)
        self.reflection = Sampling(cfg.gepa.reflect_temperature, cfg.gepa.reflect_new_tokens)
        self.max_prompt_tokens = config.max_templated_prompt_tokens(cfg)

    def evaluate(self, pairs: Sequence[tuple[str, Question]]) -> list[Outcome]:
        """An outcome for each (template, question), all sampled together."""
        asks = [Ask(question, template, self._name("evaluate", i)) for i, (template, question) in enumerate(pairs)]
        rollouts = self.answerer.answer(self.weights, asks, self.evaluation, self.key, phase="gepa")
        self._book("gepa_evaluate", cost(rollouts))
        return [Outcome(r.verdict.answer_score, r.verdict.format_score, r.text) for r in rollouts]

    def reflect(self, prompts: Sequence[str]) -> list[str]:
        """A reply to each reflection prompt, all sampled together."""
        names = [self._name("reflect", i) for i in range(len(prompts))]
        replies, spent = self.answerer.reply(self.reflector_weights, prompts, names, self.reflection, self.key)
        self._book("gepa_reflect", spent)
        return replies

    def fits(self, template: str, question: Question) -> bool:
        """Whether the question can be asked under the template at all."""
        return len(self.answerer.chat.render(question, template)) <= self.max_prompt_tokens

    def _name(self, stage: str, i: int) -> str:
        return f"{stage}/{self.num_calls}/{i}"

    def _book(self, phase: str, spent: Mapping[str, float]) -> None:
        self.num_calls += 1
        self.ledger = self.ledger.add(phase, **spent)
