"""Replies of an OpenAI-compatible chat endpoint, which may fail in every way but never stops or
hangs the caller.

Keys come from environment variables and leave this file in one place only, the Authorization
header: no error text, log or answer of ours holds anything that the endpoint or the HTTP library
said, and a key that a reply repeats is blanked out.
"""

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from p2o_jax import config

Reason = Literal[
    "timeout", "connection", "rate_limit", "server", "refused", "garbage", "no_content", "budget"
]
FAILURES: dict[Reason, str] = {
    "timeout": "no complete reply within api.timeout_s",
    "connection": "no connection, or one that broke off",
    "rate_limit": "status 429",
    "server": "status 5xx",
    "refused": "another status than 200: a wrong key, model or request",
    "garbage": "a body that is no chat completion, or is longer than any could be",
    "no_content": "a completion without text",
    "budget": "not sent: api.max_tokens_total or api.max_dollars would be passed",
}
STATS = {
    "api_failures": "proposals dropped because the endpoint gave no reply",
    **{
        f"api_failures_{reason}": f"of those, last for: {meaning}"
        for reason, meaning in FAILURES.items()
    },
    "api_retries": "requests to the endpoint that failed and were repeated",
    "api_tokens": "prompt and reply tokens of the endpoint",
    "api_dollars": "what they cost, by the prices given",
}
MAX_BACKOFF_S = 60.0
# a body longer than the reply could be, with this many bytes a token and some more, is read no
# further
_BYTES_PER_TOKEN = 32
_SPARE_BYTES = 1 << 20
_LASTING = (400, 404, 405, 413, 422)  # asking again does not help
_MILLION = 1e6

Spent = Mapping[str, float]  # "api_tokens", "api_dollars" and counts of what happened


class Failed(Exception):
    """An attempt without a reply. Its text is the reason and nothing else."""

    def __init__(self, reason: Reason, lasting: bool = False, tokens: tuple[int, int] = (0, 0)):
        super().__init__(reason)
        self.reason: Reason = reason
        self.lasting, self.tokens = lasting, tokens


def read_keys(names: Sequence[str]) -> tuple[str, ...]:
    """The keys in these environment variables.

    Raises:
        config.ConfigError: a variable is not set, or holds what can't be a key.
    """
    values = {name: os.environ.get(name, "").strip() for name in names}
    problems = [
        f"config.api.key_env: the environment variable {name} is not set"
        for name, value in values.items()
        if not value
    ]
    problems += [
        f"config.api.key_env: what the environment variable {name} holds is no key"
        for name, value in values.items()
        if value and not (value.isascii() and value.isprintable() and " " not in value)
    ]
    if problems:
        raise config.ConfigError(*problems)
    return tuple(values.values())


@dataclass
class _Budget:
    """What may still be spent: an attempt reserves the most that it could cost, and pays what
    it did.
    """

    cfg: config.ApiConfig
    tokens: float
    dollars: float
    lock: threading.Lock

    def price(self, tokens: tuple[int, int]) -> float:
        return (
            tokens[0] * self.cfg.dollars_per_million_prompt
            + tokens[1] * self.cfg.dollars_per_million_reply
        ) / _MILLION

    def set_aside(self, most: tuple[int, int]) -> bool:
        with self.lock:
            tokens, dollars = self.tokens + sum(most), self.dollars + self.price(most)
            caps = self.cfg.max_tokens_total, self.cfg.max_dollars
            if (caps[0] and tokens > caps[0]) or (caps[1] and dollars > caps[1]):
                return False
            self.tokens, self.dollars = tokens, dollars
            return True

    def pay(self, most: tuple[int, int], used: tuple[int, int]) -> None:
        with self.lock:
            self.tokens += sum(used) - sum(most)
            self.dollars += self.price(used) - self.price(most)


class Endpoint:
    """Sends reflection prompts, some at a time, with retries.

    Args:
        keys: used in turn, another one with every attempt.
        seed: names the jitter.
        sleep: waits that many seconds.
    """

    def __init__(
        self,
        cfg: config.ApiConfig,
        gepa: config.GepaConfig,
        keys: Sequence[str],
        seed: str,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.cfg, self.keys, self.seed, self.sleep = cfg, tuple(keys), seed, sleep
        self.max_tokens, self.temperature = gepa.reflect_new_tokens, gepa.reflect_temperature
        self.extra: dict[str, Any] = json.loads(cfg.extra_body) if cfg.extra_body else {}
        self.url = cfg.base_url.rstrip("/") + "/chat/completions"
        # Redirects are not followed: they would carry the key to another host.
        self._opener = urllib.request.build_opener(_NoRedirect)

    def complete(
        self, prompts: Sequence[str], names: Sequence[str], spent: Spent
    ) -> tuple[list[str | None], dict[str, float]]:
        """A reply to each prompt, None where there is none after all retries; and what this call
        has spent and met with.

        `names` make the jitter and the order of the keys; `spent` is what the run has spent on the
        endpoint before.
        """
        budget = _Budget(
            self.cfg, spent.get("api_tokens", 0), spent.get("api_dollars", 0), threading.Lock()
        )
        before, counts = (budget.tokens, budget.dollars), Counter[str]()

        def reply(i: int) -> tuple[str | None, str, int]:
            return self._reply(prompts[i], names[i], i, budget)

        pool = ThreadPoolExecutor(max(min(self.cfg.concurrency, len(prompts)), 1))
        try:
            results = list(pool.map(reply, range(len(prompts))))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        for text, reason, retries in results:
            counts["api_retries"] += retries
            if text is None:
                counts.update(["api_failures", f"api_failures_{reason}"])
        amounts = {
            "api_tokens": budget.tokens - before[0],
            "api_dollars": budget.dollars - before[1],
        }
        return [text for text, _, _ in results], {
            "api_calls": len(prompts),
            **dict(sorted(counts.items())),
            **amounts,
        }

    def _reply(
        self, prompt: str, name: str, number: int, budget: _Budget
    ) -> tuple[str | None, str, int]:
        """(text or None, reason why not, failed attempts that were followed by another)."""
        most = (len(prompt.encode("utf-8", "replace")) // 2 + 64, self.max_tokens)
        reason: Reason = "budget"
        for attempt in range(self.cfg.retries + 1):
            if attempt:
                jitter = random.Random(f"{self.seed}/{name}/{attempt}").uniform(0.5, 1.5)
                self.sleep(min(self.cfg.backoff_s * 2 ** (attempt - 1), MAX_BACKOFF_S) * jitter)
            if not budget.set_aside(most):
                return None, "budget", max(attempt - 1, 0)
            key = self.keys[(number + attempt) % len(self.keys)] if self.keys else ""
            try:
                text, used = self._attempt(prompt, key, most)
                budget.pay(most, used)
                return self._blank(text), "", attempt
            except Failed as e:
                budget.pay(most, e.tokens)
                reason = e.reason
                if e.lasting:
                    return None, reason, attempt
        return None, reason, self.cfg.retries

    def _attempt(self, prompt: str, key: str, most: tuple[int, int]) -> tuple[str, tuple[int, int]]:
        """A reply's text and its (prompt, reply) tokens, or Failed, within `timeout_s` whatever the
        other side does.

        In a thread of its own, which is left behind when time is up: no time-out of a socket covers
        looking up a name, or headers that trickle in.
        """
        result: list[Any] = []
        thread = threading.Thread(
            target=lambda: result.append(self._outcome(prompt, key, most)), daemon=True
        )
        thread.start()
        thread.join(self.cfg.timeout_s)
        outcome = result[0] if result else Failed("timeout", tokens=most)
        if isinstance(outcome, Failed):
            raise outcome
        return outcome

    def _outcome(
        self, prompt: str, key: str, most: tuple[int, int]
    ) -> tuple[str, tuple[int, int]] | Failed:
        try:
            return self._completion(self._post(prompt, key), most)
        except Failed as e:
            return e
        except TimeoutError:
            return Failed("timeout", tokens=most)
        except urllib.error.HTTPError as e:
            e.close()
            reason: Reason = (
                "rate_limit" if e.code == 429 else "server" if e.code >= 500 else "refused"
            )
            return Failed(reason, lasting=e.code in _LASTING)
        except urllib.error.URLError as e:
            return (
                Failed("timeout", tokens=most)
                if isinstance(e.reason, TimeoutError)
                else Failed("connection")
            )
        # The edge: any error of the HTTP library. Its texts could hold headers, so none is shown.
        except Exception:
            return Failed("connection")

    def _post(self, prompt: str, key: str) -> bytes:
        """The body of the answer to a request, read no longer than `timeout_s` and no further
        than a reply could be long.
        """
        deadline = time.monotonic() + self.cfg.timeout_s
        body = {
            "model": self.cfg.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            **self.extra,
        }
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )
        request = urllib.request.Request(
            self.url, json.dumps(body).encode("ascii"), headers, method="POST"
        )
        limit, parts, size = _BYTES_PER_TOKEN * self.max_tokens + _SPARE_BYTES, [], 0
        with self._opener.open(request, timeout=self.cfg.timeout_s) as answer:
            while part := answer.read1(1 << 16):
                parts.append(part)
                size += len(part)
                if size > limit:
                    raise Failed("garbage", tokens=(0, self.max_tokens))
                if time.monotonic() > deadline:
                    raise TimeoutError
        return b"".join(parts)

    def _completion(self, body: bytes, most: tuple[int, int]) -> tuple[str, tuple[int, int]]:
        try:
            value = json.loads(body)
            message = value["choices"][0]["message"]
            content = message["content"]
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise Failed("garbage", tokens=most) from None
        usage = value.get("usage")
        counts = [
            usage.get(name) if isinstance(usage, dict) else None
            for name in ("prompt_tokens", "completion_tokens")
        ]
        used = tuple(
            n if type(n) is int and n >= 0 else limit for n, limit in zip(counts, most, strict=True)
        )
        if not isinstance(content, str) or not content.strip():
            raise Failed("no_content", tokens=(used[0], used[1]))
        return content, (used[0], used[1])

    def _blank(self, text: str) -> str:
        for key in self.keys:
            text = text.replace(key, "[key]")
        return text


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: the redirect becomes an HTTPError."""
        return None
