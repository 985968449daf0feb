"""Shows runs: `python -m p2o_jax.report RUN... [--out report.html] [--serve] [--port 8100]
[--samples-mb 3]`.

RUN is a workdir, or a folder of several (a config with `arms` makes one); several runs are shown
side by side. The page is one file without need of a network: accuracy, curves, templates, hard
questions, samples, cost and settings. With --serve it is served on 127.0.0.1 instead, follows the
run while it trains, and has all samples; Ctrl-C ends it. --samples-mb says how many samples the
file holds.
"""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from p2o_jax.config import ConfigError, loading
from p2o_jax.config.ranges import Range
from p2o_jax.main import command
from p2o_jax.report import page, run, serve
from p2o_jax.runtime import files

NUMBERS = {"port": (int, Range(ge=0, le=65535)), "samples-mb": (float, Range(ge=0, le=1e5))}


def main(argv: Sequence[str]) -> None:
    """Writes the report, or serves it.

    Raises:
        ConfigError: a path without a run, a port that is taken, or no plotly.
    """
    parser = argparse.ArgumentParser(prog="python -m p2o_jax.report", add_help=False)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("report.html"))
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--port", default="8100")
    parser.add_argument("--samples-mb", default="3")
    flags = parser.parse_args(argv)
    given = loading.numbers({"port": flags.port, "samples-mb": flags.samples_mb}, NUMBERS)
    paths, samples_bytes = run.workdirs(flags.runs), int(given["samples-mb"] * 1e6)
    if flags.serve:
        try:
            server = serve.server(paths, given["port"])
        except OSError as e:
            raise ConfigError(f"--port={flags.port}: {e.strerror}") from e
        with server, suppress(KeyboardInterrupt):
            print(f"http://127.0.0.1:{server.server_address[1]}  (Ctrl-C ends it)", flush=True)
            server.serve_forever()
        return
    if problems := [] if page.is_page(flags.out) else files.conflicts("--out", flags.out):
        raise ConfigError(*problems)
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    html = page.render(run.page_data(paths, samples_bytes))
    files.write_whole(flags.out, html)
    print(f"{flags.out}  {len(html) / 1e6:.1f} MB")


if __name__ == "__main__":
    command(main)
