"""Replies of an OpenAI-compatible chat endpoint, which may fail in every way but never stops or
hangs the caller.

Keys come from environment variables and leave this file in one place only, the Authorization
header. Of what the endpoint says only replies and the reasons of refusals leave it, in which keys
that it repeats are blanked out; nothing that the HTTP library says does.
"""

import json
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

from p2o_jax import config
from p2o_jax.gepa import chat_completions, transport
from p2o_jax.gepa.chat_completions import NOTHING_SAID, Fields, ServerError, Tokens
from p2o_jax.runtime.console import printable
from p2o_jax.types import Reply

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
        f"api_failures_{reason}": f"proposals dropped, last failure of the endpoint: {meaning}"
        for reason, meaning in FAILURES.items()
    },
    "api_retries": "requests to the endpoint that failed and were repeated",
    "api_tokens": "prompt and reply tokens of the endpoint",
    "api_dollars": "cost of the endpoint's tokens, by the prices given",
}
MAX_BACKOFF_S = 60.0
# a body longer than the reply could be, with this many bytes a token and some more, is read no
# further
_BYTES_PER_TOKEN = 32
_SPARE_BYTES = 1 << 20
_KEY_PART = 8  # consecutive characters of a key that no text of ours may hold
_LASTING = (400, 404, 405, 413, 422)  # asking again does not help
_MILLION = 1e6

Spent = Mapping[str, float]  # "api_tokens", "api_dollars" and counts of what happened


class Failed(Exception):
    """An attempt without a reply. Its text is the reason and nothing else.

    Args:
        reason: why there is no reply.
        tokens: what the attempt cost, at most.
        lasting: asking again does not help.
        error: what the endpoint says about it.
        refused: the response, where it had another status than 200.
    """

    def __init__(
        self,
        reason: Reason,
        tokens: Tokens = (0, 0),
        lasting: bool = False,
        error: ServerError = NOTHING_SAID,
        refused: transport.Refused | None = None,
    ):
        super().__init__(reason)
        self.reason: Reason = reason
        self.tokens, self.lasting, self.error = tokens, lasting, error
        self.status = refused.status if refused else 0
        self.wait_s = refused.wait_s if refused else 0.0


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

    def price(self, tokens: Tokens) -> float:
        return (
            tokens[0] * self.cfg.dollars_per_million_prompt
            + tokens[1] * self.cfg.dollars_per_million_reply
        ) / _MILLION

    def reserve(self, most: Tokens) -> bool:
        with self.lock:
            tokens, dollars = self.tokens + sum(most), self.dollars + self.price(most)
            caps = self.cfg.max_tokens_total, self.cfg.max_dollars
            if (caps[0] and tokens > caps[0]) or (caps[1] and dollars > caps[1]):
                return False
            self.tokens, self.dollars = tokens, dollars
            return True

    def pay(self, most: Tokens, used: Tokens) -> None:
        with self.lock:
            self.tokens += sum(used) - sum(most)
            self.dollars += self.price(used) - self.price(most)


class Endpoint:
    """Sends reflection prompts, some at a time, with retries.

    A field that the endpoint refuses (`max_tokens`, `temperature`) is replaced or left out from
    then on. The change, and what the endpoint says about each kind of refusal, are logged once.

    Args:
        cfg: settings of the endpoint.
        gepa: settings of GEPA.
        keys: used in turn, another one with every attempt.
        seed: names the jitter.
        sleep: waits that many seconds.
        log: prints a line.
    """

    def __init__(
        self,
        cfg: config.ApiConfig,
        gepa: config.GepaConfig,
        keys: Sequence[str],
        seed: str,
        sleep: Callable[[float], None] = time.sleep,
        log: Callable[[str], None] = lambda line: None,
    ):
        self.cfg, self.keys, self.seed = cfg, tuple(keys), seed
        self.sleep, self.log = sleep, log
        self.max_tokens = gepa.reflect_new_tokens
        self.fields: Fields = chat_completions.fields(cfg, gepa)
        self.url = cfg.base_url.rstrip("/") + "/chat/completions"
        self._lock = threading.Lock()  # of fields and shown
        self._shown: set[int] = set()  # statuses
        self._key_parts = _key_parts(keys)

    def complete(
        self, prompts: Sequence[str], names: Sequence[str], spent: Spent
    ) -> tuple[list[Reply | None], dict[str, float]]:
        """A reply to each prompt, None where there is none after all retries; and what this call
        has spent and met with.

        `names` make the jitter and the order of the keys; `spent` is what the run has spent on the
        endpoint before.
        """
        budget = _Budget(
            self.cfg, spent.get("api_tokens", 0), spent.get("api_dollars", 0), threading.Lock()
        )
        before, counts = (budget.tokens, budget.dollars), Counter[str]()

        def reply(i: int) -> tuple[Reply | None, str, int]:
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
    ) -> tuple[Reply | None, str, int]:
        """(reply or None, reason why not, failed attempts that were followed by another)."""
        most = (len(prompt.encode("utf-8", "replace")) // 2 + 64, self.max_tokens)
        sent = failures = 0
        while True:
            if not budget.reserve(most):
                return None, "budget", max(sent - 1, 0)
            key = self.keys[(number + failures) % len(self.keys)] if self.keys else ""
            fields, sent = self.fields, sent + 1
            try:
                reply, used = self._attempt(prompt, fields, key, most)
                budget.pay(most, used)
                return replace(reply, text=self._blank(reply.text)), "", sent - 1
            except Failed as e:
                budget.pay(most, e.tokens)
                if self._adapts(fields, e.error):
                    continue
                self._show(e)
                failures += 1
                if e.lasting or failures > self.cfg.retries:
                    return None, e.reason, sent - 1
                self.sleep(self._wait(name, failures) + e.wait_s)

    def _wait(self, name: str, failures: int) -> float:
        jitter = random.Random(f"{self.seed}/{name}/{failures}").uniform(0.5, 1.5)
        return min(self.cfg.backoff_s * 2 ** (failures - 1), MAX_BACKOFF_S) * jitter

    def _adapts(self, sent: Fields, error: ServerError) -> bool:
        """Whether the next request is another one than these fields, which the endpoint refused."""
        with self._lock:
            if self.fields is not sent:
                return True
            fields, change = chat_completions.adapted(sent, error)
            if change:
                self.fields = fields
                self.log(f"config.api: {change} from now on; {self._says(error)}")
            return bool(change)

    def _show(self, failed: Failed) -> None:
        """Logs what the endpoint says about a failure, once for each status."""
        with self._lock:
            if not failed.error.message or failed.status in self._shown:
                return
            self._shown.add(failed.status)
        what = f"status {failed.status}" if failed.status else failed.reason
        self.log(f"config.api: {what}; {self._says(failed.error)}")

    def _attempt(self, prompt: str, fields: Fields, key: str, most: Tokens) -> tuple[Reply, Tokens]:
        """A reply and its (prompt, reply) tokens, or Failed."""
        content = {"messages": [{"role": "user", "content": prompt}], **fields}
        body = json.dumps(content).encode("ascii")
        limit = _BYTES_PER_TOKEN * self.max_tokens + _SPARE_BYTES
        try:
            answer = transport.post(self.url, body, key, self.cfg.timeout_s, limit)
            return chat_completions.read_completion(answer, most)
        except transport.Refused as e:
            raise _refused(e) from None
        except chat_completions.Unreadable as e:
            reason: Reason = "no_content" if e.has_completion else "garbage"
            raise Failed(reason, e.tokens, error=e.error) from None
        except transport.TooLong:
            raise Failed("garbage", (0, self.max_tokens)) from None
        except TimeoutError:
            raise Failed("timeout", most) from None
        except ConnectionError:
            raise Failed("connection") from None

    def _says(self, error: ServerError) -> str:
        return f"the endpoint says: {printable(self._blank(error.message))}"

    def _blank(self, text: str) -> str:
        return self._key_parts.sub("[key]", text) if self.keys else text


def _key_parts(keys: Sequence[str]) -> re.Pattern[str]:
    """Matches keys, and parts of them that are long enough to be worth hiding."""
    parts = [
        key[i : i + _KEY_PART] for key in keys for i in range(max(len(key) - _KEY_PART + 1, 1))
    ]
    return re.compile("|".join(map(re.escape, (*keys, *parts))))


def _refused(e: transport.Refused) -> Failed:
    reason: Reason = "rate_limit" if e.status == 429 else "server" if e.status >= 500 else "refused"
    error = chat_completions.read_error(e.body)
    return Failed(reason, lasting=e.status in _LASTING, error=error, refused=e)
