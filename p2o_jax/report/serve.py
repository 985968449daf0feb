"""Serves the page of runs that are still training, on this machine only.

The page asks for newer data regularly, and for samples when they are shown.
"""

import hashlib
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from p2o_jax.report import page, run
from p2o_jax.report.samples import SampleFile

HOSTS = ("127.0.0.1", "localhost")


class Source:
    """The newest data of runs. It is read again when a file has changed."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = paths
        self.samples = [SampleFile(path / "samples.jsonl") for path in paths]
        self._lock = threading.Lock()
        self._stamp: str = ""
        self._data: dict[str, Any] = {}

    def newest(self) -> tuple[str, dict[str, Any]]:
        """Returns (stamp, data). The stamp changes with the files."""
        with self._lock:
            stamp = self._stamp_of_files()
            if stamp != self._stamp:
                self._data = run.page_data(self.paths, 0)
                self._stamp = stamp
            return self._stamp, self._data

    def _stamp_of_files(self) -> str:
        names = [f"{name}.jsonl" for name in run.FILES] + ["result.json"]
        files = [path / name for path in self.paths for name in names]
        stats = [
            (s.st_mtime_ns, s.st_size) for file in files if file.exists() and (s := file.stat())
        ]
        return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]

    def samples_page(self, query: str) -> dict[str, Any] | None:
        """The samples for a query string with `run` and the arguments of `SampleFile.page`.

        None if the query is invalid.
        """
        query_args = {
            name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()
        }
        try:
            samples, number = self.samples[int(query_args["run"])], int(query_args["page"])
            search, status, prompt, order = (
                query_args[name] for name in ("search", "status", "prompt", "order")
            )
            return samples.page(search, status, prompt, order, max(number, 0))
        except (KeyError, ValueError, IndexError):
            return None


def server(paths: Sequence[Path], port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1 for the page (/), its data (/data.json) and samples (/samples.json).

    Port 0 chooses a free port.

    Raises:
        OSError: the port is in use.
    """
    source = Source(paths)
    page.plotly_js()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answers a request."""
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            url = urlsplit(self.path)
            # A page of another host name that resolves to this machine must not read the run.
            if host not in HOSTS:
                self.send_error(403)
            elif self.path == "/":
                stamp, data = source.newest()
                self._send("text/html; charset=utf-8", page.render(data, stamp).encode("utf-8"))
            elif self.path == "/data.json":
                self._send_data(*source.newest())
            elif (
                url.path == "/samples.json"
                and (samples := source.samples_page(url.query)) is not None
            ):
                self._send("application/json", page.as_json(samples).encode("ascii"))
            else:
                self.send_error(404)

        def _send_data(self, stamp: str, data: dict[str, Any]) -> None:
            if self.headers.get("If-None-Match") == f'"{stamp}"':
                self.send_response(304)
                self.end_headers()
            else:
                self._send("application/json", page.as_json(data).encode("ascii"), stamp)

        def _send(self, kind: str, body: bytes, stamp: str = "") -> None:
            self.send_response(200)
            headers = {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Cache-Control": "no-cache",
                "X-Content-Type-Options": "nosniff",
            }
            headers |= {"ETag": f'"{stamp}"'} if stamp else {}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Does not log requests."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)
