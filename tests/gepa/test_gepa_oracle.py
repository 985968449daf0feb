"""The `gepa` package as the judge: its engine, with our random draws, takes the same steps; its
tools open our result.
"""

import json
import random

import pytest
from gepa_toy import Toy, count_tokens, questions, settings

from p2o_jax.gepa import draws, reflection, replies, search, to_gepa_result
from p2o_jax.types import digest

gepa = pytest.importorskip("gepa")
HARD = questions(60, letters="bcdefghijk")


class Adapter:
    """The toy world as gepa sees it, reflecting on the same prompts as we do."""

    propose_new_texts = None

    def __init__(self, toy, cfg):
        self.toy, self.cfg = toy, cfg

    def evaluate(self, batch, candidate, capture_traces=False):
        from gepa.core.adapter import EvaluationBatch

        outcomes = self.toy.evaluate([(candidate["instruction"], q) for q in batch])
        examples = [
            reflection.ReflectionExample(
                q.text, o.text, o.score, o.format_score, q.answer, o.score > 0.5
            )
            for q, o in zip(batch, outcomes, strict=True)
        ]
        return EvaluationBatch(
            outputs=[o.text for o in outcomes],
            scores=[o.score for o in outcomes],
            trajectories=examples,
        )

    def batch_evaluate(self, items, *, capture_traces=True):
        return [self.evaluate(batch, candidate) for candidate, batch in items]

    def make_reflective_dataset(self, candidate, eval_batch, components_to_update):
        return {"instruction": [{"example": example} for example in eval_batch.trajectories]}

    def propose(self, candidate, dataset, components):
        examples = [record["example"] for record in dataset["instruction"]]
        prompt = reflection.build(candidate["instruction"], examples, self.cfg, count_tokens).text
        return {"instruction": replies.first_to_last(self.toy.reflect([prompt])[0])[0]}


class Sampler:
    """gepa's sampling strategy with our generators, and weights counted from gepa's own fronts."""

    def __init__(self, cfg, seed):
        self.cfg, self.seed, self.iteration, self.used = cfg, seed, 0, set()

    def sample_tasks(self, state, candidate_selector, batch_sampler, trainset):
        from gepa.strategies.proposal_sampling import ProposalTask

        weights = {}
        for front in state.program_at_pareto_front_valset.values():
            for z in front:
                weights[z] = weights.get(z, 0) + 1
        rng = random.Random(f"{self.seed}/select/{self.iteration}")
        tasks = []
        for parent in draws.parents(rng, weights, self.cfg.parents, fill=False):
            drawn = draws.minibatch(rng, self.used, len(trainset), self.cfg.minibatch, set())
            self.used |= set(drawn)
            tasks.append(
                ProposalTask(
                    parent,
                    state.program_candidates[parent],
                    list(drawn),
                    trainset.fetch(list(drawn)),
                )
            )
        self.iteration += 1
        return tasks


class Silent:
    def log(self, message):
        pass


def noisy(template, question):
    """A policy that sometimes solves a question for no reason, so that fronts are rich."""
    return max(
        Toy.solve(template, question), float(int(digest(template, question.id), 16) % 7 == 0)
    )


@pytest.mark.parametrize("score", [Toy.solve, noisy])
@pytest.mark.parametrize("num_iterations", [3, 15])
def test_a_whole_run_equals_gepas_with_the_same_sampling(score, num_iterations):
    cfg = settings("faithful", dev_size=20.0, max_iterations=num_iterations, max_metric_calls=10**6)
    ours = search(HARD, (toy := Toy(score=score)).evaluate, toy.reflect, count_tokens, cfg, "s")
    train, dev = draws.split(HARD, cfg.dev_size, "s")
    sampler, adapter = Sampler(cfg, "s"), Adapter(Toy(score=score), cfg)
    theirs = gepa.optimize(
        seed_candidate={"instruction": ""},
        trainset=list(train),
        valset=list(dev),
        adapter=adapter,
        custom_candidate_proposer=adapter.propose,
        sampling_strategy=sampler,
        skip_perfect_score=False,
        stop_callbacks=lambda state: sampler.iteration >= num_iterations,
        logger=Silent(),
        track_best_outputs=False,
    )
    assert len(ours.templates) > 5
    assert ours.templates == tuple(candidate["instruction"] for candidate in theirs.candidates)
    assert ours.parents == tuple(parents[0] for parents in theirs.parents)
    assert ours.score_ZN == tuple(
        tuple(row[i] for i in range(len(dev))) for row in theirs.val_subscores
    )
    exported = to_gepa_result(ours)["per_val_instance_best_candidates"]
    assert [set(front) for front in exported.values()] == [
        theirs.per_val_instance_best_candidates[i] for i in range(len(dev))
    ]


def test_gepa_opens_our_result():
    from gepa.core.result import GEPAResult

    result = search(HARD, (toy := Toy()).evaluate, toy.reflect, count_tokens, settings(), "s")
    opened = GEPAResult.from_dict(json.loads(json.dumps(to_gepa_result(result))))
    best = max(range(len(result.templates)), key=lambda z: sum(result.score_ZN[z]))
    assert opened.best_candidate == result.templates[best] != ""
    assert opened.num_candidates == len(result.templates) and opened.num_val_instances == len(
        result.dev_ids
    )
    assert opened.total_metric_calls == result.stats["rollouts_generated"]
    assert opened.discovery_eval_counts == sorted(opened.discovery_eval_counts)
    assert "<html" in opened.candidate_tree_html().lower()
