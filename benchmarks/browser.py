"""A headless Chromium that looks at pages: playwright's package with a Chromium that is on the
machine.

`python -m benchmarks.browser` says which one is found; the exit code is 1 if none is.
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
    """There is no browser here; the message says how to get one."""


@contextmanager
def opened() -> Iterator[Any]:
    """A playwright Browser.

    Raises:
        NoBrowser: no playwright, or no Chromium.
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
    """Says which browser is found."""
    try:
        with opened() as browser:
            print(f"Chromium {browser.version}")
    except NoBrowser as e:
        sys.exit(str(e))


if __name__ == "__main__":
    main()
