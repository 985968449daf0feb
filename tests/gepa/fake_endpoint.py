"""A chat endpoint on loopback that answers as configured, faults included, and remembers what it
was asked.
"""

import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = (
    "slow",
    "trickle",
    "429",
    "500",
    "400",
    "empty",
    "null",
    "garbage",
    "html",
    "endless",
    "cut",
    "reset",
    "redirect",
)


def completion(text, usage=(10, 5)):
    body = {
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    }
    return json.dumps(
        body
        | (
            {"usage": dict(zip(("prompt_tokens", "completion_tokens"), usage, strict=True))}
            if usage
            else {}
        )
    )


class Endpoint:
    """`with Endpoint(...) as e`: e.url is its base URL. A request meets `fault` with probability
    `rate`, else gets a fenced reply.

    Every body and header that an error can carry repeats the Authorization header, as a careless
    server would.
    """

    def __init__(
        self, fault="", rate=1.0, reply=lambda prompt: "```\nbe careful\n```", usage=(10, 5), seed=0
    ):
        self.fault, self.rate, self.reply, self.usage = fault, rate, reply, usage
        self.rng, self.lock, self.closing = random.Random(seed), threading.Lock(), threading.Event()
        self.requests, self.keys, self.counts, self.busy, self.most_busy = [], [], Counter(), 0, 0

    def __enter__(self):
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                endpoint.answer(self)

            def do_GET(self):
                endpoint.keys.append(("GET", self.headers.get("Authorization")))
                self.send_error(404)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None  # clients that have hung up
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *args):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        key = handler.headers.get("Authorization") or ""
        with self.lock:
            self.requests.append(body)
            self.keys.append(key)
            fault = self.fault if self.rng.random() < self.rate else ""
            self.counts[fault or "good"] += 1
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
        try:
            self.fail(handler, fault, key) if fault else self.send_good(handler, body)
        finally:
            with self.lock:
                self.busy -= 1

    def send_good(self, handler, body):
        text = self.reply(body["messages"][0]["content"])
        self.send(handler, completion(text, self.usage))

    def send(self, handler, text, status=200, headers=()):
        data = text.encode()
        handler.send_response(
            status, "Bad " + handler.headers.get("Authorization", "") if status >= 400 else None
        )
        for name, value in (("Content-Length", str(len(data))), *headers):
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def fail(self, handler, fault, key):
        if fault.isdigit():
            self.send(handler, json.dumps({"error": f"wrong key {key}"}), int(fault))
        elif fault == "slow":
            self.closing.wait(30)
        elif fault == "trickle":
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
            while not self.closing.wait(0.05):
                handler.wfile.write(b" ")
        elif fault == "empty":
            self.send(handler, completion("  "))
        elif fault == "null":
            self.send(handler, completion(None))
        elif fault == "garbage":
            self.send(handler, '{"choices": [{"message": ' + key)
        elif fault == "html":
            self.send(handler, f"<html>{key}</html>")
        elif fault == "endless":
            handler.send_response(200)
            handler.end_headers()
            chunk = b'{"choices": "' + b"word " * 4096
            while not self.closing.is_set():
                handler.wfile.write(chunk)
        elif fault == "cut":
            handler.send_response(200)
            handler.send_header("Content-Length", "100000")
            handler.end_headers()
            handler.wfile.write(b'{"choices"')
        elif fault == "reset":
            handler.connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            handler.connection.close()
        elif fault == "redirect":
            self.send(handler, "", 307, (("Location", self.url + "/elsewhere"),))


class ReasoningEndpoint(Endpoint):
    """A model that reasons, as endpoints of now serve them. It refuses `max_tokens` and any
    temperature but 1, says why as they do, asks the first `num_busy` requests to come back after
    `wait_s`, counts its reasoning as tokens, and sends its content as a list of parts. A reply that
    would be longer than max_completion_tokens is cut: it has reasoning alone.
    """

    REASONING_TOKENS = 100

    def __init__(self, num_busy=0, wait_s="2", **changes):
        super().__init__(**changes)
        self.num_busy, self.wait_s = num_busy, wait_s

    def send_good(self, handler, body):
        refused = self.refused(body)
        if refused:
            self.counts["refused"] += 1
            return self.send(handler, json.dumps({"error": refused}), 400)
        with self.lock:
            self.num_busy -= 1
        if self.num_busy >= 0:
            self.counts["busy"] += 1
            error = json.dumps({"error": {"message": "Too many requests."}})
            return self.send(handler, error, 429, [("Retry-After", self.wait_s)])
        self.counts["answered"] += 1
        text, cut = self.reply(body["messages"][0]["content"]), False
        if self.REASONING_TOKENS + len(text.split()) > body.get("max_completion_tokens", 1e9):
            text, cut = "", True
        message = {
            "role": "assistant",
            "content": [{"type": "text", "text": part} for part in text.partition(" ")],
            "reasoning_content": "First, ``` a thought ```.",
        }
        used = {"prompt_tokens": 10, "completion_tokens": self.REASONING_TOKENS}
        finish = "length" if cut else "stop"
        choice = {"message": message, "finish_reason": finish}
        return self.send(handler, json.dumps({"choices": [choice], "usage": used}))

    def refused(self, body):
        if "max_tokens" in body:
            return {
                "message": "Unsupported parameter: 'max_tokens' is not supported with this model."
                " Use 'max_completion_tokens' instead.",
                "type": "invalid_request_error",
                "param": "max_tokens",
                "code": "unsupported_parameter",
            }
        if body.get("temperature", 1) != 1:
            return {
                "message": f"Unsupported value: 'temperature' does not support"
                f" {body['temperature']} with this model. Only the default (1) value is supported.",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": "unsupported_value",
            }
        return None


def dead_url():
    """The base URL of a port at which nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{s.getsockname()[1]}/v1"


def wait_for(condition, seconds=5.0):
    """Whether the condition comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.01)
    return condition()
