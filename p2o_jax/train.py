"""The P²O loop: epochs of GRPO, and between them one round of GEPA on the questions that the epoch
found hard.

Read with the steps of `docs/algorithm.md` at hand: this file is their order and nothing else. A new
option adds a function elsewhere.
"""

from dataclasses import replace

import numpy as np

from p2o_jax import gepa
from p2o_jax.config import Config, minibatch_rollouts
from p2o_jax.p2o import assign, bandit, mining, question_history
from p2o_jax.rl import advantages, batch
from p2o_jax.startup.components import Components
from p2o_jax.state import Ledger, RunState
from p2o_jax.tracking.metric_names import of_updates, rollout_metrics
from p2o_jax.types import SearchResult


def run(cfg: Config, components: Components) -> RunState:
    """Trains until the epochs are done or the tokens are spent; goes on from the newest
    checkpoint if there is one.
    """
    state = components.open_state()
    while not is_finished(cfg, components, state):
        state = evaluate_if_due(components, state)
        before, state = (
            state,
            (prompt_phase if state.phase == "prompts" else policy_step)(cfg, components, state),
        )
        components.checkpoints.save_if_due(before, state)
    components.checkpoints.save(state)
    return evaluate(components, state)


def is_finished(cfg: Config, components: Components, state: RunState) -> bool:
    """After the last epoch no prompt phase follows; a token budget ends the run at the first step
    that reaches it.

    A run without epochs ends after the prompt phase that it begins with.
    """
    limit = cfg.train.max_generated_tokens
    tokens_spent = limit > 0 and state.ledger.total("generated_tokens") >= limit
    return state.tick > 0 and (
        tokens_spent or state.step >= cfg.train.epochs * components.questions.steps_per_epoch
    )


def policy_step(cfg: Config, components: Components, state: RunState) -> RunState:
    """One training step on a batch of questions (algorithm: "One training step", 1 to 8)."""
    group_size = cfg.rollout.group_size
    questions = mining.with_extra_groups(
        components.questions.batch(state.step), state.last_hard_ids, cfg.mining
    )
    assignment = bandit.draw(
        state.bandit, state.assignment, questions, cfg.assign, f"{cfg.train.seed}/{state.step}"
    )
    prompts = assign.prompts_for(questions, assignment, group_size, "train", state.history.tokens)
    weights = components.weights(state)
    rollouts = components.pipeline.sample(
        weights, prompts, components.sampling, components.key("rollout", state.step)
    )
    filled = components.fill(
        weights, rollouts, assignment, state.step, components.key("rollout", state.step)
    )
    del weights  # the update needs their memory

    solved_QG = np.array([r.succeeded for r in rollouts]).reshape(-1, group_size)
    templated_QG = np.array([r.templated for r in rollouts]).reshape(-1, group_size)
    found = mining.find_hard(questions, solved_QG, templated_QG, cfg.mining, state.last_hard_ids)
    advantage_QG = advantages.of_rollouts(filled.trained, cfg)

    # before any update: old, reference and templated log-probs, and the weights w
    with components.reporter.phase("score"):
        examples = batch.examples(filled.trained, advantage_QG, cfg.distill, cfg.loss.overlong)
        policy, size = components.learner.policy(state.learner), minibatch_rollouts(cfg)
        examples, score_stats = components.learner.score(
            policy, components.kl_params, examples, size
        )
    learner, update_stats = state.learner, []
    with components.reporter.phase("update"):
        for minibatch in batch.minibatches(examples, size):
            learner, stats = components.learner.update(learner, minibatch)
            update_stats.append(stats)

    step, hard_ids = state.step + 1, tuple(dict.fromkeys((*state.hard_ids, *found)))
    epoch, epoch_ends = (
        components.questions.epoch(state.step),
        components.questions.ends_epoch(step),
    )
    after = replace(
        state,
        learner=learner,
        tick=state.tick + 1,
        step=step,
        phase="prompts" if epoch_ends else "policy",
        hard_ids=hard_ids,
        ledger=state.ledger.plus(components.step_costs(filled.made, examples)),
        bandit=bandit.update(state.bandit, rollouts, cfg.assign),
        history=question_history.advanced(state.history, epoch, rollouts, hard_ids, epoch_ends),
    )
    zero_Q = advantages.zero_advantage(advantages.of_rollouts(rollouts, cfg))
    hard_now = mining.outcome_metrics(
        questions, solved_QG, templated_QG, zero_Q, state.last_hard_ids
    )
    counts = {"hard/questions_step": len(found), "hard/questions_epoch": len(after.hard_ids)}
    values = (
        rollout_metrics(filled.made)
        | filled.stats
        | of_updates(score_stats, update_stats)
        | hard_now
        | counts
    )
    components.record.step(state, after, filled.made, values)
    return after


def prompt_phase(cfg: Config, components: Components, state: RunState) -> RunState:
    """GEPA on the epoch's hard questions (algorithm: "End of an epoch"); the state that opens
    the next epoch.
    """
    result, ledger = None, state.ledger
    if gepa.is_due(state.step, len(state.hard_ids), cfg.gepa):
        epoch = components.questions.epoch(max(state.step - 1, 0))
        result, ledger = components.journals.resume(
            state, epoch, lambda journal: search(cfg, components, state, journal)
        )
    assignment = assign.next_assignment(result, state, cfg)
    after = replace(
        state,
        tick=state.tick + 1,
        phase="policy",
        hard_ids=(),
        last_hard_ids=state.hard_ids,
        assignment=assignment,
        bandit=bandit.start(result, assignment, state.bandit, cfg.assign),
        best_template=assign.best_template(result, state.best_template),
        ledger=ledger,
    )
    components.record.search(state, after, result)
    return after


def search(
    cfg: Config, components: Components, state: RunState, journal: gepa.Journal
) -> tuple[SearchResult, Ledger]:
    """GEPA on the state's hard questions, and the ledger after it; calls that are in the journal
    are not made again.
    """
    adapter = components.gepa_adapter(state)
    journal.account(spent=lambda: adapter.last_costs, replayed=adapter.book)
    result = gepa.search(
        components.questions.by_id(state.hard_ids),
        evaluate=journal.evaluate(adapter.evaluate),
        reflect=journal.reflect(adapter.reflect),
        count_tokens=components.chat.count_tokens,
        cfg=cfg.gepa,
        seed=f"{cfg.train.seed}/gepa/{state.step}",
        progress=components.record.search_progress,
        fits=adapter.fits,
        spells_special=components.chat.spells_special,
        on_stage=adapter.enter,
        success_above=cfg.reward.success_above,
    )
    return result, adapter.ledger


def evaluate_if_due(components: Components, state: RunState) -> RunState:
    """Evaluates where the schedule says so; at the end of an epoch before its prompt phase, not
    again after it.
    """
    opens_epoch = (
        state.phase == "policy"
        and state.tick > 0
        and state.step % components.questions.steps_per_epoch == 0
    )
    if components.evaluation.is_due(state.step) and not opens_epoch:
        return evaluate(components, state)
    return state


def evaluate(components: Components, state: RunState) -> RunState:
    """The state with evaluation on the ledger; accuracy on the held-out questions, plainly
    unless eval.template says so, is logged.
    """
    if not components.evaluation.questions:
        return state
    values, row, spent = components.evaluation.run(components.weights(state), state.best_template)
    after = replace(state, ledger=state.ledger.add("eval", **spent))
    components.record.evaluation(after, values, row, spent)
    components.checkpoints.save_if_best(state, values["eval/accuracy"])
    return after
