"""The P²O loop: epochs of GRPO, and between them one round of GEPA on the questions that the epoch found hard.

Read with `algorithm.md`'s steps at hand: this file is their order and nothing else. A new option adds a function elsewhere.
"""

from dataclasses import replace

import numpy as np

from p2o_jax import assign, gepa, mining
from p2o_jax.build import Parts
from p2o_jax.config import Config
from p2o_jax.metrics import mean_of, rollout_metrics
from p2o_jax.records import Assignment, RunState
from p2o_jax.rl import advantages, batch
from p2o_jax.rollout.answer import cost
from p2o_jax.rollout.stages import Stages


def run(cfg: Config, parts: Parts) -> RunState:
    """Trains until the epochs are done or the tokens are spent; goes on from the newest checkpoint if there is one."""
    state = parts.open_state()
    while not is_finished(cfg, parts, state):
        evaluate_if_due(parts, state)
        before, state = state, (prompt_phase if state.phase == "prompts" else policy_step)(cfg, parts, state)
        parts.checkpoints.save_if_due(before, state)
    parts.checkpoints.save(state)
    evaluate(parts, state)
    return state


def is_finished(cfg: Config, parts: Parts, state: RunState) -> bool:
    """After the last epoch no prompt phase follows; a token budget ends the run at the first step that reaches it."""
    limit = cfg.train.max_generated_tokens
    tokens_spent = limit > 0 and state.ledger.total("generated_tokens") >= limit
    return tokens_spent or state.step >= cfg.train.epochs * parts.questions.steps_per_epoch


def policy_step(cfg: Config, parts: Parts, state: RunState) -> RunState:
    """One training step on a batch of questions (algorithm: "One training step", 1 to 8)."""
    group_size = cfg.rollout.group_size
    questions = parts.questions.batch(state.step)
    asks = assign.asks_for(questions, state.assignment, group_size, "train")
    weights = parts.weights(state)
    rollouts = parts.answerer.answer(weights, asks, parts.sampling, parts.key("rollout", state.step))

    score_QG = np.array([r.verdict.answer_score for r in rollouts], np.float32).reshape(-1, group_size)
    templated_QG = np.array([r.templated for r in rollouts]).reshape(-1, group_size)
    found = mining.find_hard(questions, score_QG, templated_QG, cfg.mining)
    advantage_QG = advantages.group_advantages(score_QG, cfg.adv)

    with parts.reporter.phase("score"):  # before any update: old, reference and templated log-probs, and the weights w
        examples = batch.examples(rollouts, advantage_QG, cfg.distill)
        examples, score_stats = parts.learner.score(parts.learner.policy(state.learner), parts.reference_params, examples)
    learner, update_stats = state.learner, []
    with parts.reporter.phase("update"):
        for minibatch in batch.minibatches(examples, cfg.optim.minibatch_questions * group_size):
            learner, stats = parts.learner.update(learner, minibatch)
            update_stats.append(stats)

    step = state.step + 1
    after = replace(
        state,
        learner=learner,
        tick=state.tick + 1,
        step=step,
        phase="prompts" if parts.questions.ends_epoch(step) else "policy",
        hard_ids=(*state.hard_ids, *found),
        ledger=state.ledger.add("policy", **cost(rollouts)),
    )
    hard_now = mining.outcome_metrics(questions, score_QG, templated_QG, advantages.zero_advantage(advantage_QG), state.last_hard_ids)
    counts = {"hard/questions_step": len(found), "hard/questions_epoch": len(after.hard_ids)}
    parts.record.step(state, after, rollouts, rollout_metrics(rollouts) | score_stats | mean_of(update_stats) | hard_now | counts)
    return after


def prompt_phase(cfg: Config, parts: Parts, state: RunState) -> RunState:
    """GEPA on the epoch's hard questions (algorithm: "End of an epoch"); the state that opens the next epoch."""
    result, assignment, ledger = None, Assignment(), state.ledger
    if gepa.is_due(len(state.hard_ids), cfg.gepa):
        weights = parts.weights(state)
        stages = Stages(parts.answerer, weights, parts.reflector(weights), cfg, parts.key("gepa", state.step), ledger)
        result = gepa.search(
            parts.questions.by_id(state.hard_ids),
            evaluate=stages.evaluate,
            reflect=stages.reflect,
            count_tokens=parts.chat.count_tokens,
            cfg=cfg.gepa,
            seed=f"{cfg.train.seed}/gepa/{state.step}",
            progress=parts.record.search_progress,
            fits=stages.fits,
        )
        ledger = stages.ledger
        assignment = assign.assign(result, state.hard_ids, cfg.rollout.group_size, cfg.assign, f"{cfg.train.seed}/{state.step}")
    after = replace(
        state,
        tick=state.tick + 1,
        phase="policy",
        hard_ids=(),
        last_hard_ids=state.hard_ids,
        assignment=assignment,
        ledger=ledger,
    )
    parts.record.search(state, after, result)
    return after


def evaluate_if_due(parts: Parts, state: RunState) -> None:
    """Evaluates where the schedule says so; at the end of an epoch before its prompt phase, not again after it."""
    opens_epoch = state.phase == "policy" and state.step > 0 and parts.questions.ends_epoch(state.step)
    if parts.evaluation.is_due(state.step) and not opens_epoch:
        evaluate(parts, state)


def evaluate(parts: Parts, state: RunState) -> None:
    """Plain accuracy on the held-out questions, logged."""
    if parts.evaluation.questions:
        parts.record.evaluation(state, *parts.evaluation.run(parts.weights(state)))
