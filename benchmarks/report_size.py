"""Size and opening time of reports: `python -m benchmarks.report_size [--only short|long]`.

Uses two synthetic runs: 200 policy steps with 8 samples each, and 5,000 with 20 each. The page is
opened in headless Chromium. `read_s` is the time until everything except charts is present,
`open_s` the time until the first chart is drawn, and `open_cpu_s` the processor time until then,
which depends little on other jobs. The best of three counts. Without a browser, times are missing
and their targets are not met.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import browser, report, report_runs
from benchmarks.report import Target
from p2o_jax.config.command_line import CommandLine, Flag
from p2o_jax.main import command
from p2o_jax.report import page, run

SHAPES = {
    "short": report_runs.Shape(steps=200, samples_per_step=8),
    "long": report_runs.Shape(steps=5000, samples_per_step=20),
}
TARGETS = {
    "200 steps: at most 10 MB": Target("short_mb", "<=", 10),
    "200 steps: open within 3 s": Target("short_open_s", "<=", 3),
    "5,000 steps, 100,000 samples: at most 30 MB": Target("long_mb", "<=", 30),
}
COMMAND_LINE = CommandLine(
    "benchmarks.report_size",
    __doc__,
    Flag("only", "The only run to measure (default: all)", choices=tuple(SHAPES)),
    settings=False,
)


def main(argv: Sequence[str]) -> None:
    """Runs and reports.

    Raises:
        ConfigError: the flags are invalid, or plotly is missing.
    """
    flags, _ = COMMAND_LINE.parse(argv)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in [flags["only"]] if flags["only"] else SHAPES:
            figures |= {
                f"{name}_{key}": value
                for key, value in measured(Path(temporary) / name, SHAPES[name]).items()
            }
    report.finish("report_size", figures, TARGETS)


def measured(folder: Path, shape: report_runs.Shape) -> dict[str, Any]:
    """Megabytes of the run and its page, the page's samples, and seconds to write and open it."""
    report_runs.write(folder, shape)
    start = time.monotonic()
    data = run.page_data([folder], 3_000_000)
    html = page.render(data)
    seconds = time.monotonic() - start
    path = folder.with_suffix(".html")
    path.write_text(html, encoding="utf-8")
    samples = data["runs"][0]["samples"]
    figures: dict[str, Any] = {
        "run_mb": round(sum(f.stat().st_size for f in folder.iterdir()) / 1e6, 1),
        "mb": round(path.stat().st_size / 1e6, 2),
        "samples": samples["total"],
        "samples_shown": len(samples["rows"]),
        "make_s": round(seconds, 2),
    }
    try:
        best = map(min, zip(*(open_seconds(path) for _ in range(3)), strict=True))
        figures |= {
            name: round(value, 2)
            for name, value in zip(("read_s", "open_s", "open_cpu_s"), best, strict=True)
        }
    except browser.NoBrowser as e:
        figures["no_browser"] = str(e)
    return figures


def open_seconds(path: Path) -> tuple[float, float, float]:
    """The seconds until the page shows everything but charts, and until its first chart is drawn.

    Also the processor time until then.
    """
    with browser.opened() as chromium:
        view = chromium.new_page(viewport={"width": 1200, "height": 900})
        chrome = view.context.new_cdp_session(view)
        chrome.send("Performance.enable")
        start = time.monotonic()
        view.goto(path.as_uri())
        view.wait_for_selector(".plot[data-drawn]")
        opened = time.monotonic() - start
        loaded = view.evaluate(
            "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
        )
        cpu = next(
            m["value"]
            for m in chrome.send("Performance.getMetrics")["metrics"]
            if m["name"] == "ProcessTime"
        )
        return loaded / 1000, opened, cpu


if __name__ == "__main__":
    command(main)
