"""A headless Chromium for checking pages: playwright's package with an installed Chromium.

`python -m benchmarks.browser` prints the browser that is used, or fails with exit code 1.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
HOW = (
    "pip install 'p2o-jax[browser]', and a Chromium: apt-get install chromium-headless-shell (or"
    " chromium) on Debian, `playwright install chromium` elsewhere, or one's path in P2O_CHROMIUM"
)


class NoBrowser(RuntimeError):
    """No browser is available; the message says how to install one."""


@contextmanager
def opened() -> Iterator[Any]:
    """Yields a playwright Browser.

    Raises:
        NoBrowser: playwright or Chromium is missing.
    """
    try:
        from playwright import sync_api
    except ImportError as e:
        raise NoBrowser(f"no playwright here: {HOW}") from e
    path = os.environ.get("P2O_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as e:
            raise NoBrowser(f"no Chromium here: {HOW}") from e
        yield browser
        browser.close()


def main() -> None:
    """Prints the browser that is used."""
    try:
        with opened() as browser:
            print(f"Chromium {browser.version}")
    except NoBrowser as e:
        sys.exit(str(e))


if __name__ == "__main__":
    main()
