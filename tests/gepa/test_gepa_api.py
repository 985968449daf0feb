"""The reflecting endpoint: whatever it does, a phase ends, counts are right, and no key is shown
to anybody else.
"""

import dataclasses
import io
import json
import logging
import threading
import time
import traceback

import pytest
from fake_endpoint import FAULTS, Endpoint, dead_url
from gepa_toy import Toy, count_tokens, questions, settings

from p2o_jax import config
from p2o_jax.config import gepa_rules
from p2o_jax.gepa import Journal, api, search
from p2o_jax.gepa.api import read_keys
from p2o_jax.types import Reply

KEYS = ("sk-first-0123456789", "sk-second-987654321")
GEPA = settings(reflect_new_tokens=32)
FAST = config.ApiConfig(model="m", timeout_s=10.0, retries=2, backoff_s=0.001, concurrency=4)
REASONS = {
    "slow": "timeout",
    "trickle": "timeout",
    "429": "rate_limit",
    "500": "server",
    "400": "refused",
    "empty": "no_content",
    "null": "no_content",
    "garbage": "garbage",
    "html": "garbage",
    "endless": "garbage",
    "cut": "garbage",
    "reset": "connection",
    "redirect": "refused",
}
SILENT = ("slow", "trickle")  # faults that only a time-out ends


def timeout_s(fault):
    return 0.4 if fault in SILENT else 10.0


def client(url, keys=KEYS, sleep=lambda s: None, log=lambda line: None, gepa=GEPA, **changes):
    cfg = dataclasses.replace(FAST, base_url=url, **changes)
    return api.Endpoint(cfg, gepa, keys, "seed", sleep, log)


def ask(endpoint, num=4, spent=None, **changes):
    return client(endpoint if isinstance(endpoint, str) else endpoint.url, **changes).complete(
        [f"prompt {i}" for i in range(num)], [str(i) for i in range(num)], spent or {}
    )


def test_replies_come_in_order_and_are_paid_for():
    with Endpoint(reply=lambda prompt: f"re: {prompt}") as endpoint:
        replies, spent = ask(
            endpoint, 9, dollars_per_million_prompt=1e6, dollars_per_million_reply=2e6
        )
    assert replies == [Reply(f"re: prompt {i}") for i in range(9)]
    assert spent == {
        "api_calls": 9,
        "api_retries": 0,
        "api_tokens": 9 * 15,
        "api_dollars": pytest.approx(9 * 20),
    }
    assert {body["model"] for body in endpoint.requests} == {"m"} and endpoint.requests[0][
        "max_tokens"
    ] == 32
    assert endpoint.most_busy <= 4
    assert sorted(endpoint.keys) == [f"Bearer {KEYS[0]}"] * 5 + [f"Bearer {KEYS[1]}"] * 4


def test_extra_fields_go_along_and_no_key_is_needed():
    with Endpoint() as endpoint:
        ask(
            endpoint,
            1,
            keys=(),
            extra_body='{"chat_template_kwargs": {"enable_thinking": false}, "temperature": 0}',
        )
    assert (
        endpoint.requests[0]["chat_template_kwargs"] == {"enable_thinking": False}
        and endpoint.requests[0]["temperature"] == 0
    )
    assert endpoint.keys == [""]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_lasts_drops_the_proposals_in_time(fault):
    start = time.monotonic()
    with Endpoint(fault) as endpoint:
        replies, spent = ask(endpoint, 3, timeout_s=timeout_s(fault))
    assert time.monotonic() - start < 6
    assert replies == [None] * 3
    assert spent["api_failures"] == spent[f"api_failures_{REASONS[fault]}"] == 3
    attempts = 1 if fault == "400" else 3
    assert endpoint.counts == {fault: 3 * attempts} and spent["api_retries"] == 3 * (attempts - 1)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f != "400"])
def test_at_half_of_each_fault_the_others_come_through(fault):
    with Endpoint(fault, rate=0.5) as endpoint:
        replies, spent = ask(endpoint, 8, concurrency=8, timeout_s=timeout_s(fault))
    lost = sum(r is None for r in replies)
    assert lost == spent.get("api_failures", 0) < 8
    seen, asked = sum(endpoint.counts.values()), spent["api_retries"] + 8
    # on a busy machine time may be over before the endpoint has seen a request
    assert seen == asked or (fault in SILENT and seen < asked)
    # on a busy machine a good answer may come too late
    assert fault in SILENT or endpoint.counts["good"] == 8 - lost


def test_a_dead_endpoint():
    replies, spent = ask(dead_url(), 2)
    assert (
        replies == [None, None]
        and spent["api_failures_connection"] == 2
        and spent["api_tokens"] == 0
    )


def test_backoff_doubles_with_named_jitter():
    def waits():
        slept = []
        ask(dead_url(), 1, retries=8, backoff_s=1.0, sleep=slept.append)
        return slept

    slept = waits()
    assert slept == waits() and len(slept) == 8
    assert all(0.5 * min(2**i, 60) <= s <= 1.5 * min(2**i, 60) for i, s in enumerate(slept))
    assert len({s / min(2**i, 60) for i, s in enumerate(slept)}) == 8


def test_a_cap_on_tokens_is_never_passed():
    with Endpoint(usage=(10, 5)) as endpoint:
        replies, spent = ask(endpoint, 8, max_tokens_total=160, concurrency=1)
    most = len("prompt 0") // 2 + 64 + 32
    fit = 0
    while 15 * fit + most <= 160:
        fit += 1
    assert (
        sum(r is not None for r in replies) == fit
        and spent["api_failures_budget"] == 8 - fit
        and spent["api_tokens"] == 15 * fit
    )
    with Endpoint() as endpoint:
        assert ask(endpoint, 2, spent={"api_tokens": 290}, max_tokens_total=300)[0] == [None, None]
        assert endpoint.requests == []


def test_a_cap_on_dollars_counts_what_the_run_has_spent():
    prices = {"dollars_per_million_prompt": 1.0, "dollars_per_million_reply": 10.0}
    with Endpoint() as endpoint:
        assert ask(endpoint, 1, spent={"api_dollars": 0.99}, max_dollars=1.0, **prices)[0] != [None]
        replies, spent = ask(endpoint, 1, spent={"api_dollars": 0.9999}, max_dollars=1.0, **prices)
    assert (
        replies == [None]
        and spent["api_failures_budget"] == 1
        and spent["api_dollars"] == pytest.approx(0)
    )


def test_tokens_nobody_tells_are_counted_at_their_most():
    with Endpoint(usage=None) as endpoint:
        assert ask(endpoint, 1)[1]["api_tokens"] == len("prompt 0") // 2 + 64 + 32


@pytest.mark.parametrize(
    "fault", ["", "slow", "429", "500", "empty", "garbage", "endless", "reset", "redirect"]
)
def test_nothing_leaks_the_key(fault, tmp_path, capfd, monkeypatch):
    """A phase against a server that repeats the key wherever it can: not in journal, records,
    output, logs, threads' errors.
    """
    heard, lines, log = [], [], io.StringIO()
    monkeypatch.setattr(
        threading,
        "excepthook",
        lambda args: heard.append("".join(traceback.format_exception(args.exc_value))),
    )
    handler = logging.StreamHandler(log)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    journal = Journal(tmp_path / "journal.jsonl", "phase")
    with Endpoint(
        fault, rate=0.5, reply=lambda prompt: f"```\nuse {KEYS[0]} and {KEYS[1]} {len(prompt)}\n```"
    ) as endpoint:
        asked = client(endpoint.url, timeout_s=timeout_s(fault), log=lines.append)
        reflect = journal.reflect(
            lambda prompts: asked.complete(prompts, [str(i) for i in range(len(prompts))], {})[0]
        )
        evaluate = journal.evaluate(Toy().evaluate)
        result = search(
            questions(24), evaluate, reflect, count_tokens, settings(max_iterations=2), "s"
        )
    logging.getLogger().removeHandler(handler)
    out = capfd.readouterr()
    shown = [
        (tmp_path / "journal.jsonl").read_text(),
        repr(result),
        out.out,
        out.err,
        log.getvalue(),
        *heard,
        *lines,
    ]
    assert not [text for text in shown for key in KEYS if key in text]
    assert len(lines) == (fault in ("429", "500", "garbage")), lines
    assert "[key]" in repr(result) or fault
    assert endpoint.counts["good"] > 0 and not heard
    assert not [key for key in endpoint.keys if isinstance(key, tuple)], "no redirect is followed"


def test_keys_with_line_breaks_or_wide_letters_are_refused_untold(monkeypatch):
    for value in ("sk-a\nX-Evil: 1", "sk-ä", "sk a", "", "  "):
        monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(config.ConfigError) as e:
            read_keys(["MY_KEY"])
        assert "MY_KEY" in str(e.value) and (not value.strip() or value not in str(e.value))
    monkeypatch.setenv("MY_KEY", " sk-good \n")
    assert read_keys(["MY_KEY"]) == ("sk-good",) and read_keys([]) == ()


def test_wrong_settings_are_told_without_what_could_be_a_key():
    wrong = config.ApiConfig(
        base_url="https://user:sk-1@host/v1",
        key_env=("sk-secret",),
        max_dollars=1.0,
        extra_body="[1]",
    )
    lines = gepa_rules.api_problems(wrong)
    assert [line.split(":")[0].split()[0] for line in lines] == [
        "config.api.base_url",
        "config.api.model",
        "config.api.key_env",
        "config.api.max_dollars",
        "config.api.extra_body",
    ]
    assert "sk-" not in "".join(lines)
    good = config.ApiConfig(
        base_url="http://localhost:8000/v1",
        model="m",
        max_dollars=1,
        dollars_per_million_prompt=1,
        dollars_per_million_reply=1,
    )
    assert gepa_rules.api_problems(good) == []


def test_a_phase_goes_on_without_the_replies_that_failed():
    replies = iter(["``` a b ```", None, None, "``` c d ```"])
    result = search(
        questions(24),
        Toy().evaluate,
        lambda prompts: [next(replies) for _ in prompts],
        count_tokens,
        settings(max_iterations=1),
        "s",
    )
    assert result.stats["rejected_no_reply"] == 2 and result.stats["iterations"] == 1
    assert [e["outcome"] for e in result.events].count("no_reply") == 2


@pytest.mark.parametrize("preset", ["faithful", "recommended"])
def test_when_all_replies_fail_the_phase_ends_with_what_it_has(preset):
    toy, calls = Toy(), []

    def reflect(prompts):
        calls.append(len(prompts))
        return toy.reflect(prompts) if len(calls) < 3 else [None] * len(prompts)

    result = search(
        questions(48),
        toy.evaluate,
        reflect,
        count_tokens,
        settings(preset, max_metric_calls=4000),
        "s",
    )
    assert (
        len(calls) == result.stats["iterations"] == 3
        and result.stats["rejected_no_reply"] == calls[-1]
    )
    assert len(result.templates) == 1 + result.stats["accepted"]


def test_missing_replies_survive_the_journal(tmp_path):
    journal = Journal(tmp_path / "j", "p")
    given = [Reply("a"), None, Reply("b", cut=True)]
    assert journal.reflect(lambda prompts: ["a", *given[1:]])(["x", "y", "z"]) == given
    again = Journal(tmp_path / "j", "p").reflect(lambda prompts: [])
    assert again(["x", "y", "z"]) == given
    cut = {"text": "b", "cut": True, "in_thought": False}
    assert json.loads((tmp_path / "j").read_text())["answer"] == ["a", None, cut]
