"""Reflectors that reason: models that think in their replies, and endpoints that refuse fields,
answer in parts and ask to wait.
"""

import dataclasses
import email.utils
import json
import time

import pytest
from fake_endpoint import Endpoint, ReasoningEndpoint
from gepa_toy import Toy, count_tokens, questions, settings

from p2o_jax import config
from p2o_jax.config import gepa_rules
from p2o_jax.gepa import api, chat_completions, search, transport
from p2o_jax.gepa.chat_completions import ServerError
from p2o_jax.types import Reply

HARD = questions(48)
CFG = settings(max_iterations=3)
API = config.ApiConfig(model="gpt", retries=2, backoff_s=0.001, concurrency=4, key_env=())


def run(reflect):
    return search(HARD, Toy().evaluate, reflect, count_tokens, CFG, "s")


def client(url, cfg=CFG, sleep=lambda s: None, **changes):
    """An endpoint's client, and the lines that it logs."""
    lines: list[str] = []
    endpoint = dataclasses.replace(API, base_url=url, **changes)
    return api.Endpoint(endpoint, cfg, (), "seed", sleep, lines.append), lines


def ask(asked, num=4):
    names = [str(i) for i in range(num)]
    return asked.complete([f"prompt {i}" for i in range(num)], names, {})


def think(prompt, opening="<think>"):
    """The toy's reply after thoughts with a draft."""
    old = prompt.split("```\n")[1].removesuffix("\n```\n")
    return (
        f"{opening}\nThey want </think>-free words. A draft:\n```\nx {old}\n```\nWorse.\n</think>\n"
        f"The old instruction:\n```\n{old}\n```\n{Toy.mutate(prompt)}"
        "\nFor example:\n```\nProblem 1\n```"
    )


@pytest.mark.parametrize("opening", ["<think>", ""])
def test_a_thinking_reflector_finds_what_a_plain_one_finds(opening):
    toy = Toy()
    expected = run(toy.reflect)
    assert expected.stats["accepted"] > 2
    assert run(lambda prompts: [think(p, opening) for p in prompts]) == expected
    begun = [Reply(think(p, opening), in_thought=not opening) for p in toy.prompts]
    replies = iter(begun)
    assert run(lambda prompts: [next(replies) for _ in prompts]) == expected


def test_thoughts_that_do_not_end_are_never_accepted():
    for kinds, reason in (({}, "think"), ({"cut": True}, "cut")):
        result = run(
            lambda prompts, kinds=kinds: [
                Reply(f"Hm.\n{Toy.mutate(p)}\nNo, that", in_thought=True, **kinds) for p in prompts
            ]
        )
        assert result.templates == ("",)
        assert result.stats[f"rejected_{reason}"] == result.stats["proposals"] == 12


def test_a_reasoning_endpoint_finds_what_a_plain_one_finds():
    expected, slept = run(Toy().reflect), []
    with ReasoningEndpoint(num_busy=2, reply=Toy.mutate) as endpoint:
        asked, lines = client(endpoint.url, sleep=slept.append)
        result = run(lambda prompts: asked.complete(prompts, [str(len(p)) for p in prompts], {})[0])
    assert result == expected
    assert endpoint.counts["answered"] == 12 and endpoint.counts["busy"] == 2 == len(slept)
    # each field once, or once for every request that was under way when it was first refused
    assert 2 <= endpoint.counts["refused"] <= 2 * asked.cfg.concurrency
    assert endpoint.requests[-1]["max_completion_tokens"] == CFG.reflect_new_tokens
    assert not {"max_tokens", "temperature"} & set(endpoint.requests[-1])
    assert all(2 <= s < 2.1 for s in slept)
    assert [line.split(";")[0] for line in lines] == [
        "config.api: max_tokens is sent as max_completion_tokens from now on",
        "config.api: temperature=0.6 is left out from now on",
        "config.api: status 429",
    ]
    assert lines[0].endswith("Use 'max_completion_tokens' instead.")


def test_reasoning_that_takes_all_tokens_leaves_a_cut_reply_that_is_not_asked_for_again():
    with ReasoningEndpoint() as endpoint:
        asked, _ = client(endpoint.url, settings(reflect_new_tokens=50, reflect_temperature=1.0))
        replies, spent = ask(asked, 2)
    assert replies == [Reply("", cut=True)] * 2 and "api_failures" not in spent
    assert endpoint.counts["answered"] == 2 and spent["api_tokens"] == 2 * 110


def test_fields_are_removed_and_replaced_by_config():
    extra = '{"max_tokens": null, "temperature": null, "max_completion_tokens": 300}'
    with ReasoningEndpoint() as endpoint:
        asked, lines = client(endpoint.url, extra_body=extra)
        replies, spent = ask(asked)
    assert spent["api_retries"] == 0 and lines == [] and None not in replies
    assert all(
        body.keys() == {"model", "messages", "max_completion_tokens"} for body in endpoint.requests
    )
    assert gepa_rules.api_problems(dataclasses.replace(asked.cfg, extra_body=extra)) == []


def test_a_refusal_that_no_field_explains_is_shown_once():
    class Strict(Endpoint):
        def send_good(self, handler, body):
            error = {"message": f"max_tokens is too large: {body['max_tokens']}.", "code": 400}
            self.send(handler, json.dumps(error), 400)

    with Strict() as endpoint:
        asked, lines = client(endpoint.url)
        replies, spent = ask(asked)
        assert ask(asked)[0] == replies == [None] * 4
    assert spent["api_failures_refused"] == 4 == len(endpoint.requests) / 2
    assert lines == ["config.api: status 400; the endpoint says: max_tokens is too large: 2048."]


def test_what_the_endpoint_says_has_no_control_characters_and_no_part_of_a_key():
    key = "sk-0123456789abcdef"

    class Rude(Endpoint):
        def send_good(self, handler, body):
            self.send(handler, f"\x1b[31mBad key {key[3:]} {key} \u202e" + "x" * 5000, 401)

    with Rude() as endpoint:
        lines: list[str] = []
        cfg = dataclasses.replace(API, base_url=endpoint.url, retries=0)
        ask(api.Endpoint(cfg, CFG, (key,), "seed", log=lines.append), 1)
    (line,) = lines
    start = "config.api: status 401; the endpoint says: \\x1b[31mBad key "
    assert line.startswith(start) and line.isprintable() and len(line) < 400
    assert not any(key[i : i + 8] in line for i in range(len(key) - 7))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("", 0.0),
        ("-3", 0.0),
        ("nan", 0.0),
        ("86400", 0.0),  # longer than any run should stand still for: the usual wait
        ("soon", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after_is_a_number_of_seconds(header, seconds):
    assert transport._retry_after(header) == seconds


def test_retry_after_may_be_a_date():
    header = email.utils.formatdate(time.time() + 200, usegmt=True)
    assert 100 < transport._retry_after(header) <= 200


def completion(message, finish="stop", **more):
    return json.dumps({"choices": [{"message": message, "finish_reason": finish}], **more}).encode()


@pytest.mark.parametrize(
    ("message", "finish", "expected"),
    [
        ({"content": "a"}, "stop", Reply("a")),
        ({"content": ["a", {"type": "output_text", "text": "b"}]}, "stop", Reply("ab")),
        (
            {
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
                    {"type": "text", "text": "a"},
                ]
            },
            "stop",
            Reply("a"),
        ),
        ({"content": "a"}, "length", Reply("a", cut=True, in_thought=True)),
        ({"content": "a", "reasoning": "Hm"}, "length", Reply("a", cut=True)),
        ({"content": None, "reasoning_content": "Hm"}, "length", Reply("", cut=True)),
        ({"content": "a", "reasoning_content": None}, None, Reply("a")),
    ],
)
def test_replies_are_read_in_every_form(message, finish, expected):
    body = completion(message, finish, usage={"prompt_tokens": 3, "completion_tokens": 4})
    assert chat_completions.read_completion(body, (9, 9)) == (expected, (3, 4))


@pytest.mark.parametrize(
    ("body", "has_completion", "says"),
    [
        (completion({"content": None, "reasoning_content": "``` a ```"}), True, ""),
        (completion({"content": "", "refusal": "I can't."}), True, "I can't."),
        (completion({"content": [{"type": "text", "text": 3}]}), False, None),
        (completion({"content": 5}), False, None),
        (b'{"error": {"message": "No such model"}}', False, "No such model"),
        (b"[" * 100_000, False, "[" * 300),
    ],
)
def test_bodies_without_text_say_what_they_say(body, has_completion, says):
    with pytest.raises(chat_completions.Unreadable) as e:
        chat_completions.read_completion(body, (1, 1))
    assert e.value.has_completion is has_completion and says in (None, e.value.error.message)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"message": "a\nb", "param": "p", "code": "c"}}, ServerError("a b", "p", "c")),
        ({"error": "a"}, ServerError("a")),
        (
            {"detail": [{"loc": ["body"], "msg": "x"}]},
            ServerError('[{"loc": ["body"], "msg": "x"}]'),
        ),
        ({"object": "error", "message": "a", "code": 40}, ServerError("a", "", "40")),
        ([{"error": {"message": "a", "status": "NOT_FOUND"}}], ServerError("a")),
        ({"error": None}, ServerError("")),
        ([], ServerError("[]")),
    ],
)
def test_refusals_are_read_in_every_form(body, expected):
    assert chat_completions.read_error(json.dumps(body).encode()) == expected


@pytest.mark.parametrize(
    ("error", "refuses"),
    [
        (ServerError("…", "temperature", "unsupported_value"), True),
        (ServerError("…", "temperature", "invalid_type"), False),
        (ServerError("'temperature' is unsupported", "model", "unsupported_value"), False),
        (ServerError("`temperature` is not supported by this model"), True),
        (ServerError("O-series models don't support temperature=0.6."), True),
        (ServerError("'temperature' must be at most 2"), False),
        (ServerError("temperature_2 is not supported"), False),
        (ServerError("temperature: 0.6 is unsupported", "temperature"), True),
    ],
)
def test_only_what_is_not_supported_is_left_out(error, refuses):
    sent = {"temperature": 0.6, "model": "m"}
    expected = {"model": "m"} if refuses else sent
    fields, change = chat_completions.adapted(sent, error)
    assert fields == expected and bool(change) is refuses
