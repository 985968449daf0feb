"""A scripted teacher behind an OpenAI-compatible endpoint: it knows which phrases help which
family, as no part of the system does.

It reads a compact reflection prompt and answers with the instruction that was there, without what
does not help the examples that failed, and a strong phrase for one of their families. `python -m
benchmarks.science.teacher [PORT]` serves it alone.
"""

import json
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from benchmarks.science.arms import TEACHER_PORT
from p2o_jax.toy_world import phrases

# of a question: its family
FIRST_WORDS = {
    "what": "add",
    "double": "double",
    "shift": "shift",
    "key": "cipher",
}


def reply(prompt: str) -> str:
    """The fenced instruction for a compact reflection prompt; depends on nothing but its text."""
    rng = random.Random(prompt)
    instruction = prompt.split("```")[1].strip()
    helpful = {phrase for three in phrases.STRATEGIES.values() for phrase in three[:2]}
    kept = [phrase for phrase in instruction.split(phrases.SEPARATOR) if phrase in helpful]
    questions = prompt.split("question ")[1:]
    failed = [FIRST_WORDS.get(q.split(" ", 1)[0], "") for q in questions if "feedback wrong" in q]
    untried = [
        phrase
        for family in failed
        for phrase in phrases.STRATEGIES.get(family, ())[:2]
        if phrase not in kept
    ]
    if untried:
        kept.append(rng.choice(untried))
    return f"``` {phrases.join(kept[-phrases.MAX_PHRASES :])} ```"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = reply(asked["messages"][-1]["content"])
        usage = {
            "prompt_tokens": len(asked["messages"][-1]["content"].split()),
            "completion_tokens": len(text.split()),
        }
        said = {
            "choices": [
                {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            ],
            "usage": usage,
        }
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(port: int) -> Iterator[None]:
    """The teacher on this port of the loopback interface, in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    ThreadingHTTPServer(
        ("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else TEACHER_PORT), _Handler
    ).serve_forever()
