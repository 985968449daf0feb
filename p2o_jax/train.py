"""The P²O loop: epochs of GRPO, and after each a round of GEPA on the questions that it found hard.

Read it beside `docs/algorithm.md`, whose steps it follows in order. A new option is a function
elsewhere, not a branch here.
"""

from dataclasses import dataclass, replace

from p2o_jax import gepa
from p2o_jax.config import Config, minibatch_rollouts
from p2o_jax.p2o import assign, mining, question_history, value
from p2o_jax.rl import advantages, batch
from p2o_jax.rollout.dynamic_sampling import Filled
from p2o_jax.startup.components import Components
from p2o_jax.state import Ledger, RunState
from p2o_jax.tracking.metric_names import of_updates, rollout_metrics
from p2o_jax.types import Question, Rollout, SearchResult


@dataclass(frozen=True)
class Sampled:
    """What a rollout phase hands to the update phase."""

    batch: list[Question]
    questions: list[Question]  # of the batch, those that were asked; further groups follow
    rollouts: list[Rollout]  # of these questions, group by group
    filled: Filled  # the rollouts to train on, and all that were sampled


def run(cfg: Config, components: Components) -> RunState:
    """Trains until the epochs are over or the token budget is spent; returns the last state.

    Resumes from the newest checkpoint if there is one.
    """
    state = components.open_state(lambda state: is_finished(cfg, components, state))
    while not is_finished(cfg, components, state):
        before = state = evaluate_if_due(components, state)
        step = prompt_phase if state.phase == "prompts" else policy_step
        state = step(cfg, components, state)
        components.checkpoints.save_if_due(before, state)
    components.checkpoints.save(state)
    return evaluate(components, state)


def is_finished(cfg: Config, components: Components, state: RunState) -> bool:
    """Whether the epochs are over or the token budget is spent.

    No prompt phase follows the last epoch. A run without epochs ends after its first prompt phase.
    """
    limit = cfg.train.max_generated_tokens
    tokens_spent = limit > 0 and state.ledger.total("generated_tokens") >= limit
    last_step = cfg.train.epochs * components.questions.steps_per_epoch
    return state.tick > 0 and (tokens_spent or state.step >= last_step)


def policy_step(cfg: Config, components: Components, state: RunState) -> RunState:
    """One training step on a batch of questions (algorithm, "One training step")."""
    return update_phase(cfg, components, state, rollout_phase(cfg, components, state))


def rollout_phase(cfg: Config, components: Components, state: RunState) -> Sampled:
    """Samples and scores the rollouts of the step's questions (algorithm, steps 1 to 3)."""
    batch = components.questions.batch(state.step)
    asked = mining.worth_asking(batch, state, components.questions.epoch(state.step), cfg)
    questions = mining.with_extra_groups(asked, state.last_hard_ids, cfg.mining)
    prompts = assign.prompts_for(
        questions, state.assignment, cfg.rollout.group_size, "train", state.history.tokens
    )
    key = components.key("rollout", state.step)
    weights = components.weights(state)  # freed on return: the update needs their memory
    rollouts = components.pipeline.sample(weights, prompts, components.sampling, key)
    filled = components.fill(weights, rollouts, state.assignment, state.step, key)
    return Sampled(batch, questions, rollouts, filled)


def update_phase(
    cfg: Config, components: Components, state: RunState, sampled: Sampled
) -> RunState:
    """Mines hard questions and updates the policy on plain prompts (algorithm, steps 4 to 8)."""
    questions, rollouts, filled = sampled.questions, sampled.rollouts, sampled.filled
    solved_QG, templated_QG = mining.outcomes(rollouts, cfg.rollout.group_size)
    hard_now = (
        *mining.find_hard(questions, solved_QG, templated_QG, cfg.mining),
        *mining.still_hard(sampled.batch, questions, state.last_hard_ids),
    )
    advantage_QG = advantages.of_rollouts(filled.trained, cfg)

    policy, size = components.learner.policy(state.learner), minibatch_rollouts(cfg)
    with components.reporter.phase("score"):  # before any update: all log-probs but the new ones
        examples = batch.examples(filled.trained, advantage_QG, cfg.distill, cfg.loss.overlong)
        examples, score_stats = components.learner.score(
            policy, components.kl_params, examples, size
        )
    learner, update_stats = state.learner, []
    with components.reporter.phase("update"):
        for minibatch in batch.minibatches(examples, size):
            learner, stats = components.learner.update(learner, minibatch)
            update_stats.append(stats)

    step, hard_ids = state.step + 1, tuple(dict.fromkeys((*state.hard_ids, *hard_now)))
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
        ledger=state.ledger.plus(components.step_costs(filled.sampled, examples)),
        history=question_history.advanced(state.history, epoch, rollouts, hard_ids, epoch_ends),
    )
    zero_Q = advantages.zero_advantage(advantages.of_rollouts(rollouts, cfg))
    components.record.step(
        state,
        after,
        filled.sampled,
        rollout_metrics(filled.sampled)
        | filled.stats
        | of_updates(score_stats, update_stats)
        | mining.outcome_metrics(questions, solved_QG, templated_QG, zero_Q, state.last_hard_ids)
        | mining.counts(sampled.batch, questions, hard_now, hard_ids),
    )
    return after


def prompt_phase(cfg: Config, components: Components, state: RunState) -> RunState:
    """Evolves templates on the epoch's hard questions (algorithm, "End of an epoch").

    Returns the state that opens the next epoch.
    """
    result, ledger = None, state.ledger
    if gepa.is_due(state.step, len(state.hard_ids), cfg.gepa):
        epoch = components.questions.epoch(max(state.step - 1, 0))
        result, ledger = components.journals.resume(
            state, epoch, lambda journal: search(cfg, components, state, journal)
        )
    after = replace(
        state,
        tick=state.tick + 1,
        phase="policy",
        hard_ids=(),
        last_hard_ids=state.hard_ids,
        assignment=assign.next_assignment(
            result, state, cfg, components.questions.by_id(state.hard_ids)
        ),
        best_template=assign.best_template(result, state.best_template),
        pool=gepa.carried(result, state.pool, cfg.gepa),
        slices=value.searched(state.slices, result),
        ledger=ledger,
    )
    components.record.search(state, after, result)
    return after


def search(
    cfg: Config, components: Components, state: RunState, journal: gepa.Journal
) -> tuple[SearchResult, Ledger]:
    """GEPA on the state's hard questions: its result, and the ledger with what it cost.

    Calls that are in the journal are replayed, not repeated.
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
        start=(*components.seed_templates, *state.pool),
        known=question_history.known_scores(state.history, cfg.gepa),
        worth=value.worth(state, components.questions.steps_per_epoch, cfg),
    )
    return result, adapter.ledger


def evaluate_if_due(components: Components, state: RunState) -> RunState:
    """Evaluates if the schedule says so; at the end of an epoch once, before its prompt phase."""
    opens_epoch = (
        state.phase == "policy"
        and state.tick > 0
        and state.step % components.questions.steps_per_epoch == 0
    )
    if components.evaluation.is_due(state.step) and not opens_epoch:
        return evaluate(components, state)
    return state


def evaluate(components: Components, state: RunState) -> RunState:
    """Evaluates on the held-out questions, with plain prompts unless `eval.template` says "best".

    Logs the metrics; returns the state with the evaluation on its ledger.
    """
    if not components.evaluation.questions:
        return state
    values, row, spent = components.evaluation.run(components.weights(state), state.best_template)
    after = replace(state, ledger=state.ledger.add("eval", **spent))
    components.record.evaluation(after, values, row, spent)
    components.checkpoints.save_if_best(state, values["eval/accuracy"])
    return after
