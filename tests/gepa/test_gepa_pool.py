"""What a phase begins with, and what outlives it."""

import dataclasses
import re

import pytest
from gepa_toy import LETTERS, Killed, Toy, count_tokens, questions, settings

from p2o_jax import config, train
from p2o_jax.gepa import Journal, carried, pool, search, to_gepa_result
from p2o_jax.rollout.gepa_adapter import PhaseJournals
from p2o_jax.state import Attempts, History, Ledger, RunState, SliceRecord
from p2o_jax.types import SearchResult, digest

HARD = questions(48)
SEEDS = ("Use b .", "Use c and d .")


def run(toy, cfg, start=(), **more):
    return search(HARD, toy.evaluate, toy.reflect, count_tokens, cfg, "s", start=start, **more)


def test_the_cover_and_then_the_best_others_outlive_a_phase():
    templates = ("", "A", "B", "C", "D")
    rows = ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0))
    result = SearchResult(templates, (None, 0, 0, 0, 0), ("x", "y", "z"), (), rows, (0, 1))
    for most, expected in ((0, ""), (1, "A"), (2, "AB"), (3, "ABD"), (9, "ABDC")):
        assert carried(result, ("before",), settings(carry_over=most)) == tuple(expected)
    assert carried(None, ("before",), settings(carry_over=1)) == ("before",)


def test_templates_are_distinct_and_fit_and_are_paid_for():
    def fits(template, question):
        return template != "long" or question.id != "q002"

    given = ["a b", "", "long", " \n", "a  b\n", "c", "d", "long"]
    kept, dropped = pool.fitting(given, HARD[:3], fits, 2)
    assert kept == ["a b", "c"] and dropped == [("long", "overlong_prompt"), ("d", "budget")]


def test_a_phase_begins_with_the_given_templates():
    toy = Toy()
    result = run(toy, settings(), SEEDS)
    assert result.templates[:3] == ("", *SEEDS) and result.parents[:3] == (None,) * 3
    assert None not in result.parents[3:]
    assert toy.calls[0] == ("evaluate", 3 * 12)
    assert [template for template, _ in toy.pairs[:36]] == [""] * 12 + [SEEDS[0]] * 12 + [
        SEEDS[1]
    ] * 12
    stats = result.stats
    assert (stats["start_templates"], stats["start_dropped"]) == (2, 0)
    assert stats["accepted"] == len(result.templates) - 3 > 0
    assert stats["proposals"] == len(result.events)
    assert stats["rollouts_charged"] == sum(n for kind, n in toy.calls if kind == "evaluate") <= 400
    parents = {event["parent"] for event in result.events if event["iteration"] == 0}
    assert parents >= {1, 2}, "the given templates are parents from the first iteration on"
    assert to_gepa_result(result)["parents"][:3] == [[None]] * 3


def test_nothing_given_changes_nothing():
    assert run(Toy(), settings()) == run(Toy(), settings(), ("", " \n"))


def test_what_cannot_be_a_candidate_is_left_out_and_recorded():
    def fits(template, question):
        return not (template == SEEDS[0] and question.id == "q007")

    result = run(Toy(), settings(max_metric_calls=30), [*SEEDS, "Use e ."], fits=fits)
    assert result.templates == ("", SEEDS[1])
    first, second = result.events
    assert (first["text"], first["outcome"]) == (SEEDS[0], "overlong_prompt")
    assert (second["text"], second["outcome"]) == ("Use e .", "budget")
    assert {event["parent"] for event in result.events} == {None}
    stats = result.stats
    assert (stats["start_templates"], stats["start_dropped"], stats["proposals"]) == (1, 2, 0)
    assert stats["rejected_budget"] == 0 and stats["rollouts_charged"] == 24


def test_the_released_code_charges_no_first_evaluation():
    result = run(Toy(reply=lambda prompt: ""), settings("faithful", max_metric_calls=10), SEEDS)
    assert result.templates == ("", *SEEDS)
    generated = result.stats["rollouts_generated"] - 36
    # two iterations are free; then each parent's three, until ten are spent
    assert result.stats["rollouts_charged"] == generated - 2 * 9 == 18


def test_templates_of_thousands_of_characters_are_candidates_parents_and_proposals():
    """Worked examples, which the reflecting model extends by one."""
    example = "Problem: what is 12 + 34 ?\nThought: 12 + 34 = 46 .\nAnswer: \\boxed{46}\n\n"
    few_shot = f"Solve like this.\n\n{example * 60}```text\nan inner block\n```"
    assert len(few_shot) > 4000

    def extend(prompt):
        old = prompt.split("```\n", 1)[1].split("\n```\n\nThe following", 1)[0]
        return f"Here:\n````\n{old}\n{example}Letter {' '.join(LETTERS)} .\n````\nDone."

    toy = Toy(reply=extend)
    result = run(toy, settings(max_iterations=1, max_template_tokens=3000), [few_shot])
    children = [z for z, parent in enumerate(result.parents) if parent == 1]
    assert result.stats["accepted"] > 0 and children
    for z in children:
        assert result.templates[z].startswith(few_shot) and len(result.templates[z]) > 4100
    assert any(few_shot in prompt for prompt in toy.prompts)
    short = run(Toy(reply=extend), settings(max_iterations=1, max_template_tokens=500), [few_shot])
    outcomes = {event["outcome"] for event in short.events if event["parent"] == 1}
    assert outcomes == {"too_long"}


def test_what_a_given_template_shows_is_not_revealed_by_its_children():
    """A worked example whose answers are those of hard questions; a child may not add others."""
    given = "Solve as here: " + " ".join(f"RESULT{i}" for i in range(0, 48, 2))

    def reply(prompt):
        old = prompt.split("```\n")[1].removesuffix("\n")
        return f"``` {old} b c d e f g {digest(prompt)[:4]} ```"

    def leaking(prompt):
        answers = re.findall(r"The reference answer is (RESULT[0-9]+)", prompt)
        return reply(prompt).replace(" ```", f" {' '.join(answers)} ```")

    for write, leaks in ((reply, False), (leaking, True)):
        result = run(Toy(reply=write), settings(max_iterations=3, dev_size=4.0), [given])
        outcomes = [event["outcome"] for event in result.events if event["parent"] == 1]
        assert ("leak" in outcomes) is leaks and outcomes


def test_killed_at_every_call_it_ends_the_same(tmp_path):
    cfg = settings(max_metric_calls=150)

    def journaled(toy, path):
        journal = Journal(path, "epoch 1")
        return search(
            HARD,
            journal.evaluate(toy.evaluate),
            journal.reflect(toy.reflect),
            count_tokens,
            cfg,
            "s",
            start=SEEDS,
        )

    expected = journaled(whole := Toy(), tmp_path / "whole")
    for kill_at in range(len(whole.calls)):
        with pytest.raises(Killed):
            journaled(first := Toy(kill_at), tmp_path / f"{kill_at}")
        assert journaled(second := Toy(), tmp_path / f"{kill_at}") == expected
        assert first.calls + second.calls == whole.calls


class Components:
    """What the prompt phase of the loop asks for, on the toy world."""

    def __init__(self, workdir, toy, seeds=()):
        self.toy, self.seed_templates = toy, seeds
        self.journals = PhaseJournals(workdir, 0, "settings", lambda line: None)
        self.questions = self.chat = self.record = self
        self.results = []

    steps_per_epoch = 10

    def epoch(self, step):
        return step // self.steps_per_epoch

    def by_id(self, ids):
        return [q for q in HARD if q.id in ids]

    def count_tokens(self, text):
        return count_tokens(text)

    def spells_special(self, text):
        return False

    def search_progress(self, stats, fates):
        pass

    def search(self, before, after, result):
        self.results.append(result)

    def gepa_adapter(self, state):
        adapter = self.toy
        adapter.ledger, adapter.last_costs = state.ledger, {}
        adapter.book = lambda costs: None
        adapter.fits, adapter.enter = lambda template, question: True, lambda stage: None
        return adapter


START = RunState(None)


def two_phases(workdir, cfg, toys, seeds=(), state=START):
    """The states after two prompt phases, the second on other questions; each begins from the
    checkpoint of the state before it, and is repeated with the next toy where it is killed.
    """
    cfg = config.resolve(config.Config(gepa=cfg))
    parts = Components(workdir, next(toys), seeds)
    states = []
    for step, hard in ((10, HARD[:24]), (20, HARD[24:])):
        state = dataclasses.replace(state, step=step, hard_ids=tuple(q.id for q in hard))
        state = RunState.from_json(None, state.to_json())
        while True:
            try:
                states.append(train.prompt_phase(cfg, parts, state))
                break
            except Killed:
                parts = Components(workdir, next(toys), seeds)
        state = states[-1]
    return states, parts


WHOLE = {"schedule": "every_epoch", "min_hard": 1}
CARRYING = settings(**WHOLE, carry_over=3, max_metric_calls=200)


def test_a_phase_takes_over_the_last_one_s_templates(tmp_path):
    first, second = Toy(), Toy()
    states, parts = two_phases(tmp_path, CARRYING, iter([first, second]), SEEDS)
    results = parts.results
    assert results[0].templates[:3] == ("", *SEEDS)
    assert len(states[0].pool) == 3 and set(states[0].pool) <= set(results[0].templates)
    others = [text for text in states[0].pool if text not in SEEDS]
    assert others and results[1].templates[: 3 + len(others)] == ("", *SEEDS, *others)
    # scores are those on the new dev set
    by_id = {q.id: q for q in HARD[24:]}
    assert set(results[1].dev_ids) <= set(by_id)
    for template, row in zip(results[1].templates, results[1].score_ZN, strict=True):
        assert row == tuple(Toy.solve(template, by_id[name]) for name in results[1].dev_ids)
    off, _ = two_phases(tmp_path / "off", settings(**WHOLE, carry_over=0), iter([Toy()]))
    assert [state.pool for state in off] == [(), ()]


def test_a_killed_phase_that_took_templates_over_ends_the_same(tmp_path):
    whole = Toy()
    expected, _ = two_phases(tmp_path / "whole", CARRYING, iter([whole]))
    assert expected[0].pool and expected[1].pool
    journals = sorted(path.name for path in (tmp_path / "whole" / "gepa").iterdir())
    assert journals == ["journal_epoch_0.jsonl", "journal_epoch_1.jsonl"]
    num_first = len((tmp_path / "whole" / "gepa" / journals[0]).read_text().splitlines())
    for kill_at in range(num_first, len(whole.calls), 3):
        folder = tmp_path / str(kill_at)
        states, _ = two_phases(folder, CARRYING, iter([Toy(kill_at), Toy()]))
        assert states == expected
        for name in journals:
            assert (folder / "gepa" / name).read_bytes() == (
                tmp_path / "whole" / "gepa" / name
            ).read_bytes()


def test_a_skipped_phase_keeps_what_the_last_one_left(tmp_path):
    cfg = config.resolve(config.Config(gepa=settings(carry_over=2, min_hard=100)))
    state = RunState(None, step=10, hard_ids=("q001",), pool=("a", "b"), ledger=Ledger())
    after = train.prompt_phase(cfg, Components(tmp_path, Toy()), state)
    assert after.pool == ("a", "b")


def test_states_of_earlier_versions_have_no_pool():
    host = RunState(None, pool=("a",)).to_json()
    assert RunState.from_json(None, host).pool == ("a",)
    del host["pool"]
    assert RunState.from_json(None, host).pool == ()


def test_a_killed_adaptive_phase_decides_the_same(tmp_path):
    """The numbers of every decision come from the state and the journal."""
    cfg = settings(schedule="adaptive", carry_over=3, min_hard=1, max_metric_calls=4000)
    state = RunState(
        None,
        history=History(
            attempts={q.id: Attempts({"": (0, 8)}) for q in HARD[:24]},
            recent={q.id: {"": (0.05, 8.0)} for q in HARD},
            tokens={q.id: 20.0 for q in HARD},
        ),
        ledger=Ledger({"policy": {"generated_tokens": 60_000.0}}),
    )
    expected, parts = two_phases(tmp_path / "whole", cfg, iter([whole := Toy()]), state=state)
    first, second = (result.stats for result in parts.results)
    assert first["frac_dev_covered"] < 1, "the first phase ends by decision"
    assert 0 < first["value_search"] <= first["value_training"]
    assert (second["frac_dev_covered"], second["value_search"]) == (1, 0), "nothing is left to find"
    assert expected[0].slices == SliceRecord(int(first["iterations"]), int(first["fruitless"]))
    for kill_at in range(len(whole.calls)):
        states, _ = two_phases(
            tmp_path / str(kill_at), cfg, iter([Toy(kill_at), Toy()]), state=state
        )
        assert states == expected
