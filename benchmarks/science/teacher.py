"""A scripted teacher behind an OpenAI-compatible endpoint.

Unlike any part of the system, it knows which phrases help which family. It reads a compact
reflection prompt. It replies with the prompt's instruction, without the phrases that do not help
the failed examples, and with a strong phrase for one of their families. `python -m
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
    """The fenced instruction for a compact reflection prompt; depends only on its text."""
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
    """Serves the teacher on a port of the loopback interface, in a thread."""
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
