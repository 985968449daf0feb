"""Whole phases on the toy world: stages, presets, budgets, filters in place."""

import dataclasses
import json

import pytest
from gepa_toy import LETTERS, Toy, count_tokens, letter_of, make_question, questions, settings

from p2o_jax.gepa import STATS, cover, gate, reasons, search, steps
from p2o_jax.gepa.search import REJECTIONS, SHORT_REASONS
from p2o_jax.types import Reply, digest

HARD = questions(48)
UNDECIDED = set(STATS) - {"value_search", "value_training"}  # the schedule is not adaptive


def run(toy, cfg, pool=HARD, seed="s", **more):
    return search(pool, toy.evaluate, toy.reflect, count_tokens, cfg, seed, **more)


def test_search_finds_templates_that_cover_dev():
    result = run(Toy(), settings(max_metric_calls=2000))
    assert result.templates[0] == "" and result.parents[0] is None
    assert (
        len(set(result.templates))
        == len(result.templates)
        == len(result.parents)
        == len(result.score_ZN)
    )
    assert result.stats["frac_dev_covered"] == 1 and result.stats["frac_dev_solved_empty"] == 0
    assert result.cover == cover.greedy_cover(result.score_ZN, 0.5) != ()
    by_id = {q.id: q for q in HARD}
    for template, row in zip(result.templates, result.score_ZN, strict=True):
        assert row == tuple(Toy.solve(template, by_id[name]) for name in result.dev_ids)


def test_each_stage_is_one_call_with_everything_in_it():
    toy, ends = Toy(), []
    cfg = settings(max_iterations=4, max_metric_calls=10_000)
    result = run(toy, cfg, progress=lambda stats, fates: ends.append((len(toy.calls), dict(stats))))
    assert toy.calls[0] == ("evaluate", 12)
    start = 1
    for iteration, (end, _) in enumerate(ends):
        events = [e for e in result.events if e["iteration"] == iteration]
        raced, accepted = (
            [e for e in events if e["after"] is not None],
            [e for e in events if e["outcome"] == "accepted"],
        )
        stages = [
            ("evaluate", 3 * len(events)),
            ("reflect", len(events)),
            ("evaluate", 3 * len(raced)),
            ("evaluate", 12 * len(accepted)),
        ]
        assert toy.calls[start:end] == [stage for stage in stages if stage[1]]
        assert len(events) == cfg.parents
        start = end
    assert ends[-1][1] == result.stats


def test_stats_are_complete_and_add_up():
    result = run(Toy(), settings())
    stats = result.stats
    assert set(stats) == UNDECIDED
    assert all(type(value) is float for value in stats.values())
    assert all(meaning and "\n" not in meaning for meaning in STATS.values())
    rejected = sum(value for name, value in stats.items() if name.startswith("rejected_"))
    assert stats["proposals"] == stats["accepted"] + rejected == len(result.events) > 0
    assert stats["accepted"] == len(result.templates) - 1 > 0
    assert (
        (stats["train_questions"], stats["dev_questions"])
        == (len(result.train_ids), len(result.dev_ids))
        == (36, 12)
    )


def test_events_tell_the_fate_of_every_proposal():
    result = run(Toy(), settings())
    json.dumps(result.events)
    for event in result.events:
        assert set(event["minibatch"]) <= set(result.train_ids)
        if event["outcome"] == "accepted":
            z = event["candidate"]
            assert (result.templates[z], result.parents[z]) == (event["text"], event["parent"])
            assert (
                event["dev_score"] == sum(result.score_ZN[z]) / 12
                and event["after"] > event["before"]
            )
        elif event["outcome"] == "gate":
            assert event["after"] <= event["before"]


def test_search_is_the_same_again_and_depends_on_the_seed_only():
    assert run(Toy(), settings()) == run(Toy(), settings(), pool=HARD[::-1])
    assert run(Toy(), settings()).events != run(Toy(), settings(), seed="t").events


def test_faithful_charging_by_hand():
    """One parent, no child: iterations 0 and 1 are free, then three a time: 3, 6, 9, 12 ≥ 10 is
    the sixth iteration.
    """
    result = run(Toy(reply=lambda prompt: ""), settings("faithful", max_metric_calls=10))
    assert result.stats["iterations"] == result.stats["rejected_empty"] == 6
    assert result.stats["rollouts_charged"] == 12
    assert result.stats["rollouts_generated"] == 12 + 6 * 3
    assert result.cover == ()


def test_faithful_charges_parents_and_promotions_from_the_third_iteration_on():
    result = run(Toy(), settings("faithful", parents=16))
    charged, generated = 0, 12
    for event in result.events:
        # the last affordable iteration still runs
        assert charged < 400 or event["iteration"] == result.stats["iterations"] - 1
        promoted = 12 * (event["outcome"] == "accepted")
        generated += 3 + 3 * (event["after"] is not None) + promoted
        charged += (3 + promoted) * (event["iteration"] >= 2)
    assert (result.stats["rollouts_generated"], result.stats["rollouts_charged"]) == (
        generated,
        charged,
    )
    assert charged >= 400


def test_faithful_is_as_wide_as_the_front():
    result = run(Toy(), settings("faithful"))
    assert [e["parent"] for e in result.events if e["iteration"] == 0] == [0]


@pytest.mark.parametrize("calls", [5, 40, 61, 100, 257, 400])
@pytest.mark.parametrize("rollouts", [1, 2])
@pytest.mark.parametrize("minibatches", [1, 3])
def test_charge_all_never_overruns(calls, rollouts, minibatches):
    toy = Toy()
    limits = {"max_metric_calls": calls, "max_minibatches": minibatches}
    result = run(toy, settings(rollouts_per_eval=rollouts, **limits))
    generated = sum(size for kind, size in toy.calls if kind == "evaluate")
    assert result.stats["rollouts_generated"] == result.stats["rollouts_charged"] == generated
    assert generated <= max(calls, 12 * rollouts)  # dev under the empty template is the least
    assert generated > calls - (12 + 6) * rollouts or calls < 12 * rollouts


def test_the_last_wave_promotes_the_children_that_improve_most():
    phase = steps.SearchSetup(
        tuple(HARD[:6]), tuple(HARD[6:10]), settings(max_metric_calls=100), "s", 100
    )
    proposals = tuple(steps.Proposal(0, (0, 1, 2), before=0.0, text=f"t{i}") for i in range(3))
    start = steps.SearchState(
        ("",), (None,), ((0, 0, 0, 0),), stage="gate", wave=proposals, charged=100 - 9 - 5
    )
    wave = gate.gate(phase, start, [1.0, 3.0, 2.0]).wave
    assert [p.outcome for p in wave] == ["budget", "", "budget"]


def waiting(num_proposals, budget=100, **changes):
    """A phase of 9 train and 4 dev questions with proposals at the gate, whose parents failed all
    three questions, and 9 rollouts charged.
    """
    cfg = settings(max_metric_calls=budget, **changes)
    phase = steps.SearchSetup(tuple(HARD[:9]), tuple(HARD[9:13]), cfg, "s", budget)
    wave = tuple(steps.Proposal(0, (0, 1, 2), text=f"t{i}") for i in range(num_proposals))
    state = steps.SearchState(("",), (None,), ((0,) * 4,), stage="gate", wave=wave, charged=9)
    return phase, dataclasses.replace(state, used=(0, 1, 2))


def test_ties_are_compared_on_further_minibatches():
    """By hand: of four children two tie; one of these is worse on the next minibatch, the other
    ties again and is better on the last three questions.
    """
    phase, state = waiting(4, max_minibatches=3)
    state = gate.gate(phase, state, [0.0, 1.0, 0.0, -1.0])
    assert state.stage == "gate" and state.charged == 9 + 4 * 3
    first, second = gate.tied(state)
    assert (first.text, second.text) == ("t0", "t2")
    assert len({*first.more, *second.more}) == 6 and not {0, 1, 2} & {*first.more, *second.more}
    assert steps.from_json(json.loads(json.dumps(steps.to_json(state)))) == state

    state = gate.compare_more(phase, state, [1.0, 0.0], [0.0, 0.0])
    assert state.charged == 21 + 2 * 2 * 3
    (third,) = gate.tied(state)
    assert third.text == "t2" and set(third.more) == set(range(9)) - set(third.minibatch)

    state = gate.compare_more(phase, state, [0.0], [1.0])
    assert state.stage == "promote" and state.charged == state.generated + 9 == 33 + 2 * 3
    assert [(p.outcome, p.before, p.after, len(p.minibatch)) for p in state.wave] == [
        ("gate", 1.0, 0.0, 6),
        ("", 0.0, 1.0, 3),
        ("", 0.0, 1.0, 9),
        ("gate", 0.0, -1.0, 3),
    ]
    events = steps.promote(phase, state, [[1.0, 0, 0, 0]] * 2).events
    assert [event["minibatches"] for event in events] == [2, 1, 3, 1]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(9 + 6 + 4 + 12, 2), (9 + 6 + 4 + 11, 1), (9 + 6 + 4 + 5, 0)],
)
def test_ties_get_no_more_than_the_budget_allows_beside_a_promotion(budget, expected):
    phase, state = waiting(2, budget, max_minibatches=2)
    state = gate.gate(phase, state, [0.0, 0.0])
    assert len(gate.tied(state)) == expected
    assert state.stage == ("gate" if expected else "promote")


def test_the_released_gate_has_one_minibatch():
    phase, state = waiting(2)
    state = gate.gate(phase, state, [0.0, 0.0])
    assert state.stage == "promote" and [p.outcome for p in state.wave] == ["gate"] * 2


def test_children_that_help_a_third_of_the_questions_are_no_longer_lost():
    """The first child solves a third of the questions: its three are all failed in 8 of 27 draws,
    its nine in 1 of 38 (fewer, as questions are not drawn twice).
    """

    def accepted(seed, **changes):
        def score(template, question):
            return float(template == "a" and int(question.id[1:]) % 3 == 0)

        toy = Toy(reply=lambda prompt: "```\na\n```", score=score)
        cfg = settings(parents=1, max_iterations=1, max_metric_calls=10_000, **changes)
        return run(toy, cfg, seed=str(seed)).stats["accepted"]

    shares = [sum(accepted(seed, max_minibatches=m) for seed in range(200)) / 200 for m in (1, 3)]
    assert abs(shares[0] - 0.70) < 0.1 and shares[1] > 0.95


def test_width_is_filled_with_other_minibatches():
    result = run(Toy(), settings(parents=6, max_iterations=1))
    assert [e["parent"] for e in result.events] == [0] * 6
    drawn = [name for e in result.events for name in e["minibatch"]]
    assert len(set(drawn)) == 18


def test_filled_width_needs_fewer_rounds_for_the_same_budget():
    wide, narrow = (
        run(Toy(), settings(fill_width=fill, parents=8, max_metric_calls=600, patience=0))
        for fill in (True, False)
    )
    assert 2 * wide.stats["iterations"] <= narrow.stats["iterations"]


def test_patience_stops_without_accepted_children():
    toy = Toy(
        score=lambda template, question: float(question.id in ("q000", "q001", "q002", "q003"))
    )
    result = run(toy, settings(patience=3, max_metric_calls=10**6))
    assert result.stats["iterations"] == 3


def test_patience_stops_when_nothing_on_dev_is_ever_solved():
    cfg, probe = settings(patience=5, max_metric_calls=10**6), run(Toy(), settings())
    toy = Toy(
        score=lambda template, question: float(
            question.id in probe.train_ids and int(digest(template, question.id), 16) % 2
        )
    )
    result = run(toy, cfg)
    assert result.stats["accepted"] > 0 and result.stats["iterations"] == 5
    assert result.cover == () and result.stats["frac_dev_covered"] == 0


def test_max_iterations_stops():
    assert run(Toy(), settings(max_iterations=2)).stats["iterations"] == 2


def test_margin_asks_for_more_than_strict():
    result = run(Toy(), settings(acceptance="margin", acceptance_margin=2.0, max_metric_calls=1000))
    fates = {
        e["after"] - e["before"] >= 2: e["outcome"] for e in result.events if e["after"] is not None
    }
    assert fates == {True: "accepted", False: "gate"}


def test_rollouts_of_an_evaluation_are_averaged():
    class Noisy(Toy):
        def evaluate(self, pairs):
            outcomes = super().evaluate(pairs)
            assert all(pairs[i] == pairs[i + 1] == pairs[i + 2] for i in range(0, len(pairs), 3))
            return [dataclasses.replace(o, score=float(i % 3 == 0)) for i, o in enumerate(outcomes)]

    result = run(Noisy(), settings(rollouts_per_eval=3, max_metric_calls=500))
    assert set(result.score_ZN[0]) == {1 / 3}
    assert {e["outcome"] for e in result.events} == {"gate"}  # rounding of means is no improvement
    assert result.cover == ()  # one of three is not solved


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Be careful.", "no_fence"),
        ("<think>``` b ```", "think"),
        ("``` " + "word " * 2000 + "```", "too_long"),
        ("``` ```", "empty"),
        ("", "empty"),
    ],
)
def test_rejected_replies_are_counted_and_cost_no_rollouts(reply, reason):
    toy = Toy(reply=lambda prompt: reply)
    result = run(toy, settings(max_iterations=2))
    assert result.stats[f"rejected_{reason}"] == result.stats["proposals"] == 8
    assert [kind for kind, _ in toy.calls] == [
        "evaluate",
        "evaluate",
        "reflect",
        "evaluate",
        "reflect",
    ]
    assert result.templates == ("",)


def test_duplicates_within_a_wave_and_of_the_pool_are_rejected():
    result = run(
        Toy(reply=lambda prompt: "``` b c d e f g ```"),
        settings(max_iterations=2, skip_perfect=False),
    )
    assert [e["outcome"] for e in result.events] == ["accepted", *["duplicate"] * 7]


def test_leaked_answers_and_questions_never_enter_the_pool():
    def reply(prompt):
        answer = prompt.split("The reference answer is ")[1].split(".")[0]
        return f"``` b c d e f g answer {answer} ```"

    assert run(Toy(reply=reply), settings(max_iterations=1)).stats["rejected_leak"] == 4
    assert (
        run(Toy(reply=reply), settings(max_iterations=1, leak_guard=False)).stats["accepted"] == 4
    )


def test_templates_that_make_a_question_too_long_are_rejected():
    result = run(
        Toy(),
        settings(max_iterations=1),
        fits=lambda template, question: template == "" or question.id != "q000",
    )
    assert result.stats["rejected_overlong_prompt"] == 4 and result.templates == ("",)


def test_reflection_prompts_that_cannot_fit_are_not_sent():
    toy = Toy()
    result = run(toy, settings(max_iterations=1, reflect_prompt_tokens=20))
    assert (
        result.stats["rejected_overlong_reflection"] == 4 and result.stats["examples_dropped"] == 12
    )
    assert toy.prompts == [] and result.stats["reflect_calls"] == 0


@pytest.mark.parametrize("preset", ["faithful", "recommended"])
def test_nothing_solved_gives_an_empty_cover(preset):
    result = run(Toy(score=lambda template, question: 0.0), settings(preset, max_metric_calls=60))
    assert result.cover == () and result.templates == ("",)


@pytest.mark.parametrize("num", [0, 1])
def test_too_few_questions_give_the_trivial_result(num):
    toy = Toy(score=lambda template, question: 1.0)
    result = run(toy, settings(), pool=questions(num))
    assert result.templates == ("",) and result.train_ids == () and len(result.dev_ids) == num
    assert toy.calls == [("evaluate", 1)] * num
    assert result.cover == (0,) * num
    assert set(result.stats) == UNDECIDED


def test_two_questions_are_enough():
    pool = [make_question(0), make_question(6)]
    assert letter_of(pool[0]) == letter_of(pool[1]) == LETTERS[0]
    result = run(Toy(), settings(max_iterations=3), pool=pool)
    assert result.stats["frac_dev_covered"] == 1


def test_state_survives_json_at_every_stage():
    cfg = settings()
    phase = steps.SearchSetup(tuple(HARD[:8]), tuple(HARD[8:12]), cfg, "s", 400)
    seen = [steps.init(phase, [""], [[0.0, 1.0, 0.0, 0.0]], 4)]
    seen.append(steps.select(phase, seen[-1]))
    replies = [
        Reply("``` a ```"),
        steps.NoReply("overlong_reflection"),
        Reply("``` b ```"),
        Reply("no"),
    ]
    seen.append(steps.propose(phase, seen[-1], [0.0, 0.0, 0.0, 0.0], replies, count_tokens))
    seen.append(gate.gate(phase, seen[-1], [1.0, 0.0]))
    seen.append(steps.promote(phase, seen[-1], [[1.0, 0.0, 0.0, 0.0]]))
    assert [s.stage for s in seen] == ["select", "propose", "gate", "promote", "select"]
    for each in seen:
        assert steps.from_json(json.loads(json.dumps(steps.to_json(each)))) == each
    assert seen[-1].templates == ("", "a") and seen[-1].parents == (None, 0)
    assert seen[-1].charged == seen[-1].generated == 4 + 4 * 3 + 2 * 3 + 4
    assert [e["outcome"] for e in seen[-1].events] == [
        "accepted",
        "overlong_reflection",
        "gate",
        "no_fence",
    ]


def test_graded_scores_and_feedback_reach_reflection_and_one_threshold_decides():
    """Scores of .6 or .2: solved above .5, not above .7; the reflecting model reads what the
    reward function said.
    """

    class Graded(Toy):
        def evaluate(self, pairs):
            return [
                dataclasses.replace(
                    o, score=0.2 + 0.4 * o.score, feedback=f"Said of {o.score:.0f}."
                )
                for o in super().evaluate(pairs)
            ]

    for above, solved in ((0.5, True), (0.7, False), (0.1, True)):
        toy = Graded(reply=lambda prompt: f"```\n{' '.join(LETTERS)} {digest(prompt)[:4]}\n```")
        result = run(toy, settings(), success_above=above)
        assert (
            result.success_above == above
            and bool(result.cover) is solved
            and len(result.templates) > 1
        )
        assert result.stats["frac_dev_covered"] == solved and result.stats[
            "frac_dev_solved_empty"
        ] == (above == 0.1)
        assert result.stats["best_dev_score"] == pytest.approx(0.6)
        assert any(
            "## Feedback\nSaid of 0. The reference answer is RESULT" in prompt
            for prompt in toy.prompts
        )
        assert not any("The final answer is wrong" in prompt for prompt in toy.prompts)


def always(template, question):
    return 1.0


def test_perfect_parents_are_not_reflected_on_and_the_budget_ends_the_phase():
    """12 for the empty template on dev, then waves of 3 rollouts for each parent, the children's
    and a promotion kept in reserve.

    Four parents fit while 388 - charged >= 24: 30 waves, 372. Then two, one, one (6 each of what is
    left), and none: 384 of 400.
    """
    toy = Toy(score=always)
    result = run(toy, settings(patience=0, max_iterations=0))
    assert toy.prompts == [] and [kind for kind, _ in toy.calls] == ["evaluate"] * 34
    assert [size for _, size in toy.calls] == [12, *[12] * 30, 6, 3, 3]
    assert (
        result.stats["rejected_perfect"] == len(result.events) == 124
        and result.stats["proposals"] == 124
    )
    assert result.stats["rollouts_charged"] == result.stats["rollouts_generated"] == 384
    assert {(e["outcome"], e["before"], e["after"]) for e in result.events} == {
        ("perfect", 3.0, None)
    }
    assert result.templates == ("",) and result.cover == (0,)


def test_patience_counts_iterations_in_which_all_parents_were_perfect():
    assert run(Toy(score=always), settings(patience=3)).stats["iterations"] == 3


def test_the_released_code_reflects_on_perfect_parents():
    toy = Toy(score=always)
    result = run(toy, settings("faithful", max_iterations=2))
    assert (
        result.stats["rejected_by_gate"] == len(toy.prompts) == 2
        and result.stats["rejected_perfect"] == 0
    )


def test_perfect_parents_beside_others():
    """With minibatches of one question a parent is perfect or not; only the latter are reflected
    on, in their own order.
    """
    toy = Toy(score=lambda template, question: float(int(question.id[1:]) % 2))
    result = run(toy, settings(minibatch=1, max_iterations=3, patience=0))
    odd = [int(e["minibatch"][0][1:]) % 2 for e in result.events]
    assert [e["outcome"] for e in result.events] == [
        "perfect" if o else "gate" for o in odd
    ] and 0 < sum(odd) < len(odd) == 12
    asked = [int(prompt.split("Problem ")[1].split()[0]) for prompt in toy.prompts]
    assert asked == [int(e["minibatch"][0][1:]) for e in result.events if e["outcome"] == "gate"]


@pytest.mark.parametrize(
    ("margin", "before", "expected"),
    [
        (None, 3.0, True),
        (None, 2.999, False),
        (None, 0.1 + 0.2 + 2.7, True),
        (1.0, 2.5, True),
        (1.0, 2.0, False),
        (0.0, 3.0, False),
    ],
)
def test_what_no_child_can_beat(margin, before, expected):
    """Of three questions: 3 at most, and a margin of 1 above 2.5 is more than that; with a
    margin of 0 an equal child is accepted.
    """
    cfg = settings() if margin is None else settings(acceptance="margin", acceptance_margin=margin)
    phase = steps.SearchSetup(tuple(HARD[:8]), tuple(HARD[8:12]), cfg, "s", 400)
    assert gate.is_unbeatable(phase, steps.Proposal(0, (0, 1, 2)), before) == expected


@pytest.mark.parametrize(
    ("missing", "stage"),
    [
        (["perfect"] * 4, "select"),
        (["overlong_reflection"] * 4, "select"),
        (["no_reply"] * 4, "done"),
        (["perfect", "no_reply", "overlong_reflection", "no_reply"], "done"),
    ],
)
def test_a_phase_ends_where_all_that_was_sent_was_left_unanswered(missing, stage):
    phase = steps.SearchSetup(tuple(HARD[:8]), tuple(HARD[8:12]), settings(), "s", 400)
    each = steps.select(phase, steps.init(phase, [""], [[0.0] * 4], 4))
    each = steps.propose(
        phase, each, [0.0] * 4, [steps.NoReply(why) for why in missing], count_tokens
    )
    assert steps.promote(phase, gate.gate(phase, each, []), []).stage == stage


def test_every_rejection_has_words_and_the_main_reason_comes_first():
    assert set(SHORT_REASONS) == set(REJECTIONS)
    fates = ["gate", "no_fence", "gate", "accepted", "perfect", "gate", "no_fence"]
    assert (
        reasons(fates) == "3 not better, 2 no closed fence, 1 parent perfect"
        and reasons(["accepted"]) == ""
    )


def test_progress_is_told_what_became_of_each_iteration_s_proposals():
    seen = []
    result = run(
        Toy(), settings(max_iterations=3), progress=lambda stats, fates: seen.append(list(fates))
    )
    assert seen == [[e["outcome"] for e in result.events if e["iteration"] == i] for i in range(3)]
    assert len(seen) == 3 and any("accepted" in fates for fates in seen)


def test_scores_that_are_known_are_neither_evaluated_nor_charged():
    scores = {("", q.id): 0.25 for q in HARD[:40]}
    at_once = {"start": ["b c"], "worth": lambda covered: (0.0, 0.0)}
    toy = Toy()
    result = run(toy, settings(), known=lambda z, q: scores.get((z, q.id)), **at_once)
    known = [name for name in result.dev_ids if ("", name) in scores]
    assert 0 < len(known) < 12
    assert toy.calls == [("evaluate", 24 - len(known))]
    assert [q.id for template, q in toy.pairs if not template] == [
        name for name in result.dev_ids if name not in known
    ]
    assert result.score_ZN[0] == tuple(0.25 if name in known else 0.0 for name in result.dev_ids)
    assert result.stats["rollouts_charged"] == result.stats["rollouts_generated"] == 24 - len(known)
    assert run(Toy(), settings(), **at_once).score_ZN[1] == result.score_ZN[1]


def test_a_phase_ends_before_the_first_iteration_that_is_not_worth_its_tokens():
    whole, seen = run(Toy(), settings(max_iterations=4, max_metric_calls=10_000)), []

    def worth(covered):
        seen.append(tuple(covered))
        return (3.0, 1.0) if len(covered) < 3 else (2.0, 2.0)

    toy = Toy()
    result = run(toy, settings(max_iterations=4, max_metric_calls=10_000), worth=worth)
    assert result.stats["iterations"] == 2 and whole.stats["iterations"] == 4
    assert result.events == tuple(e for e in whole.events if e["iteration"] < 2)
    assert [len(each) for each in seen] == [1, 2, 3]
    assert seen[-1][0] == 0 and seen[-1][2] == result.stats["frac_dev_covered"] > 0
    assert (result.stats["value_search"], result.stats["value_training"]) == (2, 2)
    none = run(toy := Toy(), settings(), worth=lambda covered: (0.0, 0.0))
    assert none.stats["iterations"] == 0 and toy.calls == [("evaluate", 12)]
