"""Takes the pictures of the report in docs/images/ again: `python -m docs.screenshots RUN...`.

They were taken of the runs of `make quickstart`: `python -m docs.screenshots runs/quickstart`.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import browser
from p2o_jax.report import page, run

IMAGES = Path(__file__).parent / "images"


class Shot(NamedTuple):
    """A window of this size in pixels, in a colour scheme, scrolled to a section."""

    width: int
    height: int
    scheme: str
    section: str


SHOTS = {
    "report-desktop": Shot(1100, 900, "light", ""),
    "report-dark": Shot(1100, 800, "dark", "templates"),
    "report-phone": Shot(390, 780, "light", "questions"),
}


def main(argv: Sequence[str]) -> None:
    """Takes the pictures."""
    html = page.render(run.page_data(run.workdirs(argv), 3_000_000))
    with tempfile.TemporaryDirectory() as temporary, browser.opened() as chromium:
        path = Path(temporary) / "report.html"
        path.write_text(html, encoding="utf-8")
        for name, shot in SHOTS.items():
            view = chromium.new_page(
                viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.scheme
            )
            view.goto(path.as_uri())
            view.wait_for_selector("body[data-ready]")
            view.wait_for_function("window.Plotly")
            if shot.section:
                view.evaluate(
                    "id => document.getElementById(id).scrollIntoView({behavior: 'instant'})",
                    shot.section,
                )
            view.wait_for_timeout(1000)  # for charts that come into view
            view.screenshot(path=IMAGES / f"{name}.png")
            view.close()
            print(IMAGES / f"{name}.png", (IMAGES / f"{name}.png").stat().st_size)


if __name__ == "__main__":
    main(sys.argv[1:])
