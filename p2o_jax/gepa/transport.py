"""A POST request with a deadline for all of it, and a limit on the size of its answer.

Made with urllib. httpx would log the status line of each response, which may repeat a key; deadline
and size limit would need the same code; and whether the base installation has it as httpx or as
httpx2 depends on the version of huggingface_hub.
"""

import email.utils
import threading
import time
import urllib.error
import urllib.request
from typing import Any

MAX_RETRY_AFTER_S = 300.0
_REFUSAL_BYTES = 1 << 16  # of the body of a refusal; the rest is not read


class Refused(Exception):
    """A response with another status than 200. Its text is the status alone.

    Args:
        status: of the response.
        body: its first bytes.
        wait_s: seconds to wait by its Retry-After header; 0 where it has none, or one of more than
            MAX_RETRY_AFTER_S.
    """

    def __init__(self, status: int, body: bytes, wait_s: float):
        super().__init__(f"status {status}")
        self.status, self.body, self.wait_s = status, body, wait_s


class TooLong(Exception):
    """A body of more bytes than the limit."""


def post(url: str, body: bytes, key: str, timeout_s: float, limit: int) -> bytes:
    """Returns the body of the answer, within `timeout_s` whatever the other side does.

    The request is made in a thread of its own, which is left behind when time is up: no time-out of
    a socket covers looking up a name, or headers that trickle in. Redirects are not followed: they
    would carry the key to another host.

    Args:
        url: where to.
        body: JSON.
        key: for the Authorization header; empty: no such header.
        timeout_s: seconds from the start to the last byte.
        limit: bytes that the answer may have.

    Raises:
        Refused: another status than 200.
        TooLong: the answer has more bytes.
        TimeoutError: time is up.
        ConnectionError: anything else went wrong. No exception holds a text of the HTTP library,
            which could hold headers.
    """
    deadline, result = time.monotonic() + timeout_s, list[bytes | Exception]()
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, body, headers, method="POST")
    thread = threading.Thread(
        target=lambda: result.append(_outcome(request, deadline, limit)), daemon=True
    )
    thread.start()
    thread.join(timeout_s)
    outcome = result[0] if result else TimeoutError()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _outcome(request: urllib.request.Request, deadline: float, limit: int) -> bytes | Exception:
    timeout_s = max(deadline - time.monotonic(), 1e-3)
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_s) as answer:
            body, whole = _read(answer, deadline, limit)
        return body if whole else TooLong()
    except urllib.error.HTTPError as e:
        with e:
            return _refused(e, deadline)
    except TimeoutError:
        return TimeoutError()
    except urllib.error.URLError as e:
        return TimeoutError() if isinstance(e.reason, TimeoutError) else ConnectionError()
    except Exception:  # the edge: any error of the HTTP library
        return ConnectionError()


def _read(stream: Any, deadline: float, limit: int) -> tuple[bytes, bool]:
    """The stream's bytes up to the limit, and whether these are all."""
    parts, size = [], 0
    while part := stream.read1(1 << 16):
        parts.append(part)
        size += len(part)
        if size > limit:
            return b"".join(parts)[:limit], False
        if time.monotonic() > deadline:
            raise TimeoutError
    return b"".join(parts), True


def _refused(e: urllib.error.HTTPError, deadline: float) -> Refused:
    try:
        body, _ = _read(e, deadline, _REFUSAL_BYTES)
    except Exception:  # the status is known, and enough
        body = b""
    return Refused(e.code, body, _retry_after(e.headers.get("Retry-After", "")))


def _retry_after(value: str) -> float:
    """The seconds to wait by a Retry-After header, which has a number of them or a date."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return seconds if 0 < seconds <= MAX_RETRY_AFTER_S else 0.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """None: the redirect becomes an HTTPError."""
        return None
