"""Renders one chat template in a process of its own: `python template_worker.py FD`.

The first JSON message from the socket FD is a `Setup`. Each one after it is a list of chat
messages, answered with `["text", the rendered text]` or `["error", the reason]`. The process ends
when the socket is closed.

A template is part of a model, which may come from an untrusted source. Jinja's sandbox protects
Python's internals, but does not stop endless loops, `9 ** (9 ** 9)` or `'x' * 10 ** 9`. The kernel
therefore ends this process after `cpu_s` seconds of processor time and limits its memory to
`memory_bytes`. Unlike wall-clock time, processor time does not depend on the machine's other work,
and a template cannot wait without using it.

The environment matches transformers' `apply_chat_template`: both render the same text. This module
imports nothing from the package.
"""

import contextlib
import json
import random
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from multiprocessing.connection import Connection
from typing import Any, TypedDict

import jinja2
import jinja2.debug  # imported early, so that its import does not count as the template's time
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_ERROR_CHARS = 300


class Setup(TypedDict):
    """The template to render, and the limits on rendering it."""

    template: str
    variables: dict[str, Any]
    date: str  # ISO: what `strftime_now` formats
    cpu_s: int  # per rendering; the first one includes compiling the template
    memory_bytes: int
    max_chars: int  # in a rendered text


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, which renders its body unchanged.

    The tag marks the assistant's tokens in training texts.
    """

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Parses the tag into a node that renders its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace` without names that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no name {name!r}")


def environment(now: datetime) -> jinja2.Environment:
    """The environment of transformers for chat templates, with the clock fixed at `now`."""
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        # parameters and defaults as in transformers
        return json.dumps(
            x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    env.filters["tojson"] = tojson
    env.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": now.strftime,
        "namespace": Namespace,
    }
    # a function, because the attributes of the class would expose Python's internals
    env.globals["dict"] = lambda *args, **kwargs: dict(*args, **kwargs)
    return env


def encode(message: Any) -> bytes:
    """JSON that `json.loads` restores exactly. ASCII JSON would join two adjacent surrogates."""
    return json.dumps(message, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def main(fd: int) -> None:
    """Serves until the parent closes the socket."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the process group; for the parent
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(fd)
    setup: Setup = json.loads(connection.recv_bytes())
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, setup["memory_bytes"])
    compiled: jinja2.Template | None = None
    while True:
        try:
            messages = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + setup["cpu_s"] + 1)
        random.seed(0)  # the filter `random` makes the same choice every time
        try:
            if compiled is None:
                compiled = environment(datetime.fromisoformat(setup["date"])).from_string(
                    setup["template"]
                )
            text = compiled.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **setup["variables"],
            )
            if len(text) > setup["max_chars"]:
                raise ValueError(
                    f"renders {len(text):,} characters; the limit is {setup['max_chars']:,}"
                )
            reply = ["text", text]
        except MemoryError:
            reply = ["error", f"needs more than {setup['memory_bytes'] >> 20} MiB of memory"]
        except jinja2.exceptions.TemplateError as e:
            reply = ["error", _short(str(e))]
        except Exception as e:  # the edge: templates raise any error of Python's operators
            reply = ["error", _short(f"{type(e).__name__}: {e}")]
        connection.send_bytes(encode(reply))


def _short(text: str) -> str:
    """The text on one line, cut to about MAX_ERROR_CHARS characters."""
    text = " ".join(text[: 10 * MAX_ERROR_CHARS].split())
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + " ..."


def _limit(what: int, soft: int) -> None:
    hard = resource.getrlimit(what)[1]
    with contextlib.suppress(OSError, ValueError):  # not every system has every limit
        resource.setrlimit(
            what, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard)
        )


if __name__ == "__main__":
    main(int(sys.argv[1]))
