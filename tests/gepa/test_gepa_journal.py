"""An interrupted phase resumes where it stopped: nothing twice, the same bits."""

import numpy as np
import pytest
from gepa_toy import Killed, Toy, count_tokens, questions, settings

from p2o_jax.gepa import Journal, JournalMismatch, resume, search
from p2o_jax.types import Outcome

HARD = questions(30)
CFG = settings(max_metric_calls=200)


def run(toy, path, phase="epoch 1", cfg=CFG):
    journal = Journal(path, phase)
    return search(
        HARD, journal.evaluate(toy.evaluate), journal.reflect(toy.reflect), count_tokens, cfg, "s"
    )


def test_kill_at_every_call_and_resume_is_the_uninterrupted_run(tmp_path):
    whole = Toy()
    expected = run(whole, tmp_path / "whole.jsonl")
    assert expected == search(HARD, Toy().evaluate, Toy().reflect, count_tokens, CFG, "s")
    assert len(whole.calls) > 10
    for kill_at in range(len(whole.calls)):
        path = tmp_path / f"{kill_at}.jsonl"
        first, second = Toy(kill_at), Toy()
        with pytest.raises(Killed):
            run(first, path)
        assert run(second, path) == expected
        assert first.calls + second.calls == whole.calls
        assert (
            first.pairs + second.pairs == whole.pairs
            and first.prompts + second.prompts == whole.prompts
        )
        assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_phase_with_perfect_parents_goes_on_with_the_same_bits(tmp_path):
    """Perfect parents leave calls smaller, or out."""
    cfg = settings(max_metric_calls=200, minibatch=1)
    expected = run(whole := Toy(), tmp_path / "whole", cfg=cfg)
    assert 0 < expected.stats["rejected_perfect"] < expected.stats["proposals"]
    for kill_at in range(len(whole.calls)):
        with pytest.raises(Killed):
            run(first := Toy(kill_at), tmp_path / f"{kill_at}", cfg=cfg)
        assert run(second := Toy(), tmp_path / f"{kill_at}", cfg=cfg) == expected
        assert first.calls + second.calls == whole.calls


def test_a_finished_journal_answers_everything(tmp_path):
    expected, toy = run(Toy(), tmp_path / "j"), Toy()
    assert run(toy, tmp_path / "j") == expected and toy.calls == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-1],
        lambda line: line[: len(line) // 2],
        lambda line: line.replace(b"1", b"7", 1),
    ],
)
def test_a_torn_last_line_is_cut_and_redone(tmp_path, damage):
    path, whole = tmp_path / "j", Toy()
    expected = run(whole, path)
    intact = path.read_bytes()
    lines = intact.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + damage(lines[4]))
    toy = Toy()
    assert run(toy, path) == expected
    assert toy.calls == whole.calls[4:] and path.read_bytes() == intact


def test_damage_before_the_last_line_is_an_error(tmp_path):
    path = tmp_path / "j"
    run(Toy(), path)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1][:20] + b"\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalMismatch, match="line 2 of"):
        run(Toy(), path)


def test_another_phase_or_other_inputs_are_an_error(tmp_path):
    run(Toy(), tmp_path / "j")
    with pytest.raises(JournalMismatch, match="call 0"):
        run(Toy(), tmp_path / "j", phase="epoch 2")
    with pytest.raises(JournalMismatch, match="call 1"):
        run(Toy(), tmp_path / "j", cfg=settings(max_metric_calls=200, minibatch=2))


def test_fresh_and_replayed_answers_are_the_same_value(tmp_path):
    outcome = Outcome(np.float32(1 / 3), 1, "a\ud800\u2028\n\x00ü", "Shorter\n.")
    fresh = Journal(tmp_path / "j", "p").evaluate(lambda pairs: [outcome])([("t", HARD[0])])
    journal = Journal(tmp_path / "j", "p")
    assert journal.num_left == 1
    assert (
        journal.evaluate(lambda pairs: [])([("t", HARD[0])])
        == fresh
        == [Outcome(float(np.float32(1 / 3)), 1.0, outcome.text, outcome.feedback)]
    )
    assert journal.num_left == 0


class Till:
    """Costs as the caller keeps them: a call costs its size; replayed ones are booked, too."""

    def __init__(self, toy):
        self.toy, self.booked, self.last = toy, [], None

    def evaluate(self, pairs):
        self.last = {"evaluate": len(pairs)}
        self.booked.append(self.last)
        return self.toy.evaluate(pairs)

    def reflect(self, prompts):
        self.last = {"reflect": len(prompts)}
        self.booked.append(self.last)
        return self.toy.reflect(prompts)

    def run(self, path):
        journal = Journal(path, "epoch 1")
        journal.account(lambda: self.last, self.booked.append)
        return search(
            HARD,
            journal.evaluate(self.evaluate),
            journal.reflect(self.reflect),
            count_tokens,
            CFG,
            "s",
        )


def test_costs_are_booked_once_however_often_the_phase_is_killed(tmp_path):
    whole = Till(Toy())
    expected = whole.run(tmp_path / "whole")
    assert [tuple(c) for c in whole.toy.calls] == [tuple(cost.items())[0] for cost in whole.booked]
    for more_calls in (0, 3, 2, 1):  # the same journal, killed again and again
        with pytest.raises(Killed):
            Till(Toy(kill_at=more_calls)).run(tmp_path / "j")
    last = Till(Toy())
    assert last.run(tmp_path / "j") == expected and last.booked == whole.booked


def test_a_journal_of_another_phase_is_retired(tmp_path):
    path, reasons = tmp_path / "j", []
    run(Toy(), path, phase="epoch 1")

    def retire(reason):
        reasons.append(reason)
        path.rename(tmp_path / "aside")

    toy = Toy()
    fresh = resume(
        lambda: Journal(path, "epoch 2"),
        lambda journal: search(
            HARD,
            journal.evaluate(toy.evaluate),
            journal.reflect(toy.reflect),
            count_tokens,
            CFG,
            "s",
        ),
        retire,
    )
    assert (
        fresh == run(Toy(), tmp_path / "other")
        and len(reasons) == 1
        and "call 0" in reasons[0]
        and "\n" not in reasons[0]
    )
    assert (tmp_path / "aside").exists() and path.read_bytes() == (tmp_path / "j").read_bytes()
    run(Toy(), path, phase="epoch 2")  # the new one answers


def test_other_hosts_read_what_the_first_wrote_and_write_nothing(tmp_path):
    expected = run(Toy(), tmp_path / "first")
    data, toy = (tmp_path / "first").read_bytes(), Toy()
    lines = data.splitlines(keepends=True)
    journal = Journal(
        tmp_path / "other", "epoch 1", write=False, load=lambda path: b"".join(lines[:5])
    )
    assert (
        search(
            HARD,
            journal.evaluate(toy.evaluate),
            journal.reflect(toy.reflect),
            count_tokens,
            CFG,
            "s",
        )
        == expected
    )
    assert not (tmp_path / "other").exists() and len(toy.calls) == len(lines) - 5
