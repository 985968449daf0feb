"""Shows runs: `python -m p2o_jax.report RUN... [--out report.html] [--serve]`.

RUN is a run directory, or a folder of several, as written for a config with `arms`. Several runs
are shown side by side. The page is one file that needs no network. It shows accuracy, curves,
templates, hard questions, samples, cost and settings.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from p2o_jax.config import ConfigError
from p2o_jax.config.command_line import CommandLine, Flag, Switch
from p2o_jax.config.ranges import Range
from p2o_jax.main import command
from p2o_jax.report import page, run, serve
from p2o_jax.runtime import files

COMMAND_LINE = CommandLine(
    "p2o_jax.report",
    __doc__,
    Flag("out", "Output file", "report.html", metavar="FILE.html"),
    Switch(
        "serve",
        "Serve the page on 127.0.0.1 instead, with all samples, and follow runs while they train;"
        " stop with Ctrl-C",
    ),
    Flag(
        "port",
        "Port to serve on; 0 takes a free one",
        8100,
        kind=int,
        within=Range(ge=0, le=65535),
    ),
    Flag(
        "samples-mb",
        "Megabytes of samples in the file",
        3.0,
        kind=float,
        within=Range(ge=0, le=1e5),
        metavar="MB",
    ),
    positional=Flag("runs", "Run directories, or folders of several", several=True, metavar="RUN"),
    settings=False,
)


def main(argv: Sequence[str]) -> None:
    """Writes or serves the report.

    Raises:
        ConfigError: a path contains no run, the port is in use, or plotly is not installed.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    paths, samples_bytes = run.workdirs(flags["runs"]), int(flags["samples-mb"] * 1e6)
    out = Path(flags["out"])
    if flags["serve"]:
        try:
            server = serve.server(paths, flags["port"])
        except OSError as e:
            raise ConfigError(f"--port={flags['port']}: {e.strerror}") from e
        with server, suppress(KeyboardInterrupt):
            print(f"http://127.0.0.1:{server.server_address[1]}  (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        return
    if problems := [] if page.is_page(out) else files.conflicts("--out", out):
        raise ConfigError(*problems)
    out.parent.mkdir(parents=True, exist_ok=True)
    html = page.render(run.page_data(paths, samples_bytes))
    files.write_whole(out, html)
    print(f"{out}  {len(html) / 1e6:.1f} MB")


if __name__ == "__main__":
    command(main)
