"""One GEPA phase: from hard questions to the templates that cover them (algorithm, end of an epoch,
steps 1 to 4).

`evaluate` and `reflect` are its only connections to the outside. Every stage of an iteration is one
call with all of its inputs: parents on their minibatches, all reflection prompts, children on the
same minibatches, ties again on further ones, accepted ones on dev.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from p2o_jax import config
from p2o_jax.gepa import budget, cover, draws, gate, leaks, pool, reflection
from p2o_jax.gepa import steps as steps
from p2o_jax.p2o.value import fruitless
from p2o_jax.types import Outcome, Question, Reply, SearchResult

Pair = tuple[str, Question]  # (template, question)
Worth = tuple[float, float]  # what an iteration is expected to bring, and its tokens elsewhere
EvaluationStage = Literal["seed", "parents", "children", "dev"]  # purpose of an evaluation
Evaluate = Callable[[Sequence[Pair]], Sequence[Outcome]]
Reflect = Callable[[Sequence[str]], Sequence[Reply | str | None]]

REJECTIONS = {
    "gate": "children that did not beat their parent on its minibatch",
    "budget": "children that beat their parent, but the budget allows no more evaluations on dev",
    "cut": (
        "replies that ended at gepa.reflect_new_tokens before their thoughts or their template did"
    ),
    "no_fence": "replies without a closed fence",
    "think": "replies whose thoughts do not end",
    "too_long": "templates of more than gepa.max_template_tokens tokens",
    "special_token": "templates that spell a special token of the tokenizer",
    "duplicate": "templates that already exist",
    "empty": "replies without a template",
    "leak": (
        "templates that contain a reference answer or eight consecutive words of a question of"
        " their minibatch"
    ),
    "overlong_prompt": "templates under which some question exceeds the prompt limit",
    "overlong_reflection": (
        "proposals whose reflection prompt is too long even with a single example"
    ),
    "no_reply": "proposals for which the reflecting endpoint returned no reply",
    "perfect": (
        "proposals that were skipped because no child could beat the parent on its minibatch"
    ),
}
SHORT_REASONS = {
    "gate": "not better",
    "budget": "no budget left",
    "cut": "cut off",
    "no_fence": "no closed fence",
    "think": "unfinished thoughts",
    "too_long": "template too long",
    "special_token": "special token",
    "duplicate": "duplicate",
    "empty": "empty",
    "leak": "contains answer or question",
    "overlong_prompt": "prompt too long",
    "overlong_reflection": "reflection prompt too long",
    "no_reply": "no reply",
    "perfect": "parent perfect",
}

STATS = {
    "start_templates": "templates that the phase began with beside the empty one",
    "start_dropped": (
        "templates that the phase did not begin with: some question would be too long, or the"
        " budget spent"
    ),
    "iterations": "waves of proposals",
    "proposals": "pairs of a parent and a minibatch",
    "accepted": "children that became candidates",
    "ties": "children that tied with their parent and were compared on more questions",
    **{
        ("rejected_by_gate" if reason == "gate" else f"rejected_{reason}"): meaning
        for reason, meaning in REJECTIONS.items()
    },
    "examples_cut": "responses cut in the middle to fit a reflection prompt",
    "examples_dropped": "examples dropped to fit a reflection prompt",
    "rollouts_generated": "rollouts of candidate evaluation, all stages",
    "rollouts_charged": "rollouts as the budget counts them",
    "budget": "rollouts that the phase may use",
    "evaluate_calls": "batches of rollouts of candidate evaluation",
    "reflect_calls": "batches of reflection prompts",
    "train_questions": "hard questions that reflection learns from",
    "dev_questions": "hard questions that candidates are judged on",
    "frac_dev_solved_empty": "share of dev questions that the empty template solves",
    "frac_dev_covered": "share of dev questions that some candidate solves",
    "best_dev_score": "mean dev score of the best candidate",
    "num_cover": "templates in the greedy cover",
    "fruitless": "latest iterations, in a row, after which no more dev questions were covered",
    "value_search": (
        "informative groups that the next iteration was expected to bring, when it was last decided"
    ),
    "value_training": "informative groups that training brings for the tokens of that iteration",
}


def reasons(fates: Iterable[str]) -> str:
    """Returns why proposals were rejected, most frequent first, e.g. "9 not better, 4 no closed
    fence"; empty if none was.
    """
    counts = Counter(fate for fate in fates if fate in SHORT_REASONS)
    return ", ".join(f"{count} {SHORT_REASONS[fate]}" for fate, count in counts.most_common())


def is_due(step: int, num_hard: int, cfg: config.GepaConfig) -> bool:
    """Whether templates evolve after this many policy steps, at the end of an epoch with this many
    hard questions.
    """
    on_schedule = step == 0 if cfg.schedule == "first" else step > 0
    evolves = cfg.enabled and cfg.reflector != "hint"
    return evolves and on_schedule and num_hard >= cfg.min_hard


def search(
    questions: Sequence[Question],
    evaluate: Evaluate,
    reflect: Reflect,
    count_tokens: Callable[[str], int],
    cfg: config.GepaConfig,
    seed: str,
    progress: Callable[[Mapping[str, float], Sequence[str]], None] = lambda stats, fates: None,
    fits: Callable[[str, Question], bool] = lambda template, question: True,
    spells_special: Callable[[str], bool] = lambda text: False,
    on_stage: Callable[[EvaluationStage], None] = lambda stage: None,
    success_above: float = 0.5,
    start: Sequence[str] = (),
    known: Callable[[str, Question], float | None] = lambda template, question: None,
    worth: Callable[[Sequence[float]], Worth | None] = lambda covered: None,
) -> SearchResult:
    """Returns templates for these hard questions, their dev scores and the greedy cover.

    Args:
        questions: hard ones, in any order. With fewer than two, only the empty template is tried.
        evaluate: returns one outcome per (template, question) pair, in order. Each pair comes
            `cfg.rollouts_per_eval` times in a row; the scores are averaged.
        reflect: returns one reply per prompt, in order, a text if it is complete; None where there
            is none. If all are missing, the phase ends. An empty reply is rejected.
        count_tokens: tokens of a text, counted by the policy's tokenizer.
        cfg: settings of GEPA, resolved: no field is None.
        seed: names all randomness of the phase.
        progress: called after every iteration with `STATS` so far, and its proposals' outcomes:
            "accepted" or a key of `REJECTIONS`.
        fits: whether a question fits the prompt limit under a template, as all must.
        spells_special: whether a text spells a special token of the policy's tokenizer, as no
            template may.
        on_stage: called before each call of `evaluate` with its purpose.
        success_above: config.reward.success_above.
        start: templates that the phase begins with beside the empty one, as far as they fit and the
            budget can evaluate them.
        known: the score of a template of the beginning on a question, if it need not be evaluated.
        worth: called before every iteration with the shares of dev questions that were solved by
            some template, at first and after each iteration. The phase ends unless what it returns
            for the next iteration is more than for its tokens elsewhere, or None.
    """
    phase = _setup(questions, cfg, seed, success_above)
    evaluator = _Evaluator(phase, evaluate, reflect, count_tokens, on_stage)
    state = _begun(phase, evaluator, start, fits, known)
    while (state := steps.select(phase, evaluator.weighed(state, worth))).stage != "done":
        before, examples = evaluator.parents(state)
        replies = evaluator.replies(state, before, examples)
        state = steps.propose(phase, state, before, replies, count_tokens, fits, spells_special)
        state = gate.gate(phase, state, evaluator.children(state))
        while state.stage == "gate":
            state = gate.compare_more(phase, state, *evaluator.tied(state))
        num_before = len(state.events)
        accepted = [p.text for p in steps.undecided(state)]
        state = steps.promote(phase, state, evaluator.dev(accepted, "dev"))
        progress(
            _stats(phase, state, evaluator),
            [event["outcome"] for event in state.events[num_before:]],
        )
    return _result(phase, state, evaluator)


def _setup(
    questions: Sequence[Question], cfg: config.GepaConfig, seed: str, success_above: float
) -> steps.SearchSetup:
    train, dev = draws.split(questions, cfg.dev_size, seed)
    total = budget.total(cfg, len(train), len(dev))
    common = leaks.common_ngrams((*train, *dev))
    return steps.SearchSetup(train, dev, cfg, seed, total, common, success_above)


def _begun(
    phase: steps.SearchSetup,
    evaluator: "_Evaluator",
    start: Sequence[str],
    fits: Callable[[str, Question], bool],
    known: Callable[[str, Question], float | None],
) -> steps.SearchState:
    """Returns the state with the templates that the phase begins with, evaluated on dev as far as
    their scores are not known; a phase without dev questions is done.
    """
    if not phase.dev:
        return steps.SearchState(("",), (None,), ((),), stage="done")
    questions, most = (*phase.train, *phase.dev), steps.affordable(phase) - 1
    given, dropped = pool.fitting(start, questions, fits, most)
    templates = ["", *given]
    scores = [[known(template, question) for question in phase.dev] for template in templates]
    num_unknown = sum(row.count(None) for row in scores)
    return steps.init(phase, templates, evaluator.seed(templates, scores), num_unknown, dropped)


class _Evaluator:
    """Calls `evaluate` and `reflect` once per stage, not at all for an empty one, and counts
    calls.
    """

    def __init__(
        self,
        phase: steps.SearchSetup,
        evaluate: Evaluate,
        reflect: Reflect,
        count_tokens: Callable[[str], int],
        on_stage: Callable[[EvaluationStage], None],
    ):
        self._phase, self._evaluate, self._reflect, self._count_tokens = (
            phase,
            evaluate,
            reflect,
            count_tokens,
        )
        self._on_stage = on_stage
        self.covered: list[float] = []  # before every iteration
        self.worth: Worth | None = None  # of the latest decision
        self.counts = dict.fromkeys(
            ("evaluate_calls", "reflect_calls", "examples_cut", "examples_dropped"), 0
        )

    def outcomes(
        self, pairs: Sequence[Pair], stage: EvaluationStage
    ) -> list[tuple[float, Outcome]]:
        """Returns, for each pair, the mean score of its rollouts and the first outcome."""
        if not pairs:
            return []
        n = self._phase.cfg.rollouts_per_eval
        asked = [pair for pair in pairs for _ in range(n)]
        self._on_stage(stage)
        results = self._evaluate(asked)
        assert len(results) == len(asked), f"evaluate answered {len(results)} of {len(asked)} pairs"
        self.counts["evaluate_calls"] += 1
        groups = [results[i : i + n] for i in range(0, len(results), n)]
        return [(sum(float(o.score) for o in group) / n, group[0]) for group in groups]

    def dev(self, templates: Sequence[str], stage: EvaluationStage) -> list[list[float]]:
        """Returns the scores of each template on all of dev."""
        dev = self._phase.dev
        results = self.outcomes([(template, q) for template in templates for q in dev], stage)
        rows = [results[i : i + len(dev)] for i in range(0, len(results), len(dev))]
        return [[score for score, _ in row] for row in rows]

    def seed(
        self, templates: Sequence[str], known: Sequence[Sequence[float | None]]
    ) -> list[list[float]]:
        """Returns the scores of the first templates on dev: those that are known, and others by
        evaluation.
        """
        asked = [
            (template, question)
            for template, row in zip(templates, known, strict=True)
            for question, score in zip(self._phase.dev, row, strict=True)
            if score is None
        ]
        new = iter(score for score, _ in self.outcomes(asked, "seed"))
        return [[next(new) if score is None else score for score in row] for row in known]

    def weighed(
        self, state: steps.SearchState, worth: Callable[[Sequence[float]], Worth | None]
    ) -> steps.SearchState:
        """Returns the state, done if the next iteration is not worth its tokens."""
        if state.stage == "done":
            return state
        solved = cover.covered(state.score_ZN, self._phase.success_above)
        self.covered.append(len(solved) / len(self._phase.dev))
        self.worth = worth(self.covered)
        stop = self.worth is not None and self.worth[0] <= self.worth[1]
        return replace(state, stage="done") if stop else state

    def parents(
        self, state: steps.SearchState
    ) -> tuple[list[float], list[list[reflection.ReflectionExample]]]:
        """Returns the score of each proposal's parent, summed over its minibatch, and the examples
        to reflect on.
        """
        groups = self._minibatches(
            [(state.templates[p.parent], p.minibatch) for p in state.wave], "parents"
        )
        examples = [[self._example(q, o) for q, _, o in group] for group in groups]
        return [sum(score for _, score, _ in group) for group in groups], examples

    def _example(self, q: Question, o: Outcome) -> reflection.ReflectionExample:
        right = o.score > self._phase.success_above
        return reflection.ReflectionExample(
            q.text, o.text, o.score, o.format_score, q.answer, right, o.feedback
        )

    def children(self, state: steps.SearchState) -> list[float]:
        """Returns the score of each remaining child, summed over its parent's minibatch."""
        groups = self._minibatches(
            [(p.text, p.minibatch) for p in steps.undecided(state)], "children"
        )
        return [sum(score for _, score, _ in group) for group in groups]

    def tied(self, state: steps.SearchState) -> tuple[list[float], list[float]]:
        """Returns the scores of the parents and children of ties, summed over their further
        minibatches.
        """
        ties = gate.tied(state)
        parents = self._minibatches([(state.templates[p.parent], p.more) for p in ties], "parents")
        children = self._minibatches([(p.text, p.more) for p in ties], "children")
        return [sum(score for _, score, _ in group) for group in parents], [
            sum(score for _, score, _ in group) for group in children
        ]

    def _minibatches(
        self, items: Sequence[tuple[str, Sequence[int]]], stage: EvaluationStage
    ) -> list[list[tuple[Question, float, Outcome]]]:
        train = self._phase.train
        outcomes = iter(
            self.outcomes(
                [(template, train[i]) for template, minibatch in items for i in minibatch], stage
            )
        )
        return [[(train[i], *next(outcomes)) for i in minibatch] for _, minibatch in items]

    def replies(
        self,
        state: steps.SearchState,
        before: Sequence[float],
        examples: Sequence[Sequence[reflection.ReflectionExample]],
    ) -> list[Reply | steps.NoReply]:
        """Returns the reply to each proposal's reflection prompt, or why there is none.

        Reasons are: not even one example fits the prompt, the endpoint did not reply, or, ▲ with
        `skip_perfect`, no child could beat the parent.
        """
        cfg = self._phase.cfg
        skipped = [
            bool(cfg.skip_perfect) and gate.is_unbeatable(self._phase, p, b)
            for p, b in zip(state.wave, before, strict=True)
        ]
        prompts = [
            (
                reflection.SKIPPED
                if skip
                else reflection.build(state.templates[p.parent], group, cfg, self._count_tokens)
            )
            for p, group, skip in zip(state.wave, examples, skipped, strict=True)
        ]
        sent = [prompt.text for prompt in prompts if prompt.text]
        results = list(self._reflect(sent)) if sent else []
        assert len(results) == len(sent), f"reflect answered {len(results)} of {len(sent)} prompts"
        self.counts["reflect_calls"] += bool(sent)
        self.counts["examples_cut"] += sum(prompt.num_cut for prompt in prompts)
        self.counts["examples_dropped"] += sum(prompt.num_dropped for prompt in prompts)
        answers = iter(results)
        missing = [steps.NoReply("perfect" if skip else "overlong_reflection") for skip in skipped]
        given = [
            next(answers) if prompt.text else why
            for prompt, why in zip(prompts, missing, strict=True)
        ]
        given = [Reply(reply) if isinstance(reply, str) else reply for reply in given]
        return [steps.NoReply("no_reply") if reply is None else reply for reply in given]


def _stats(
    phase: steps.SearchSetup, state: steps.SearchState, evaluator: _Evaluator
) -> dict[str, float]:
    fates = [event["outcome"] for event in state.events if event["parent"] is not None]
    covered = len(cover.covered(state.score_ZN, phase.success_above))
    num_dev = max(len(phase.dev), 1)
    stats: dict[str, float] = {
        "start_templates": state.parents.count(None) - 1,
        "start_dropped": len(state.events) - len(fates),
        "iterations": state.iteration,
        "proposals": len(fates),
        "accepted": fates.count("accepted"),
        "ties": sum(event.get("minibatches", 1) > 1 for event in state.events),
        **{
            ("rejected_by_gate" if reason == "gate" else f"rejected_{reason}"): fates.count(reason)
            for reason in REJECTIONS
        },
        "rollouts_generated": state.generated,
        "rollouts_charged": state.charged,
        "budget": phase.budget,
        "train_questions": len(phase.train),
        "dev_questions": len(phase.dev),
        "frac_dev_solved_empty": (
            len(cover.covered(state.score_ZN[:1], phase.success_above)) / num_dev
        ),
        "frac_dev_covered": covered / num_dev,
        "fruitless": fruitless([*evaluator.covered[: state.iteration], covered / num_dev]),
        "best_dev_score": max(sum(row) / num_dev for row in state.score_ZN),
        "num_cover": len(cover.greedy_cover(state.score_ZN, phase.success_above)),
        **evaluator.counts,
    }
    if evaluator.worth is not None:
        stats["value_search"], stats["value_training"] = evaluator.worth
    return {name: float(stats[name]) for name in STATS if name in stats}


def _result(
    phase: steps.SearchSetup, state: steps.SearchState, evaluator: _Evaluator
) -> SearchResult:
    return SearchResult(
        templates=state.templates,
        parents=state.parents,
        dev_ids=tuple(q.id for q in phase.dev),
        train_ids=tuple(q.id for q in phase.train),
        score_ZN=state.score_ZN,
        cover=cover.greedy_cover(state.score_ZN, phase.success_above),
        stats=_stats(phase, state, evaluator),
        events=state.events,
        success_above=phase.success_above,
    )
