"""Renders a self-contained HTML page with its style, scripts, plotly and data.

The page fetches nothing and never runs anything in the data. Data is embedded as JSON with every
`<` escaped, in a script element with a type that is not executed. The scripts insert text only as
text. The content security policy allows the scripts by their hashes, and nothing else.
"""

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from p2o_jax import __version__
from p2o_jax.config import ConfigError

MARK = b'<meta name="generator" content="p2o_jax.report">'
SCRIPTS = (
    "core",
    "elements",
    "charts",
    "overview",
    "difference",
    "templates",
    "questions",
    "samples",
    "settings",
    "main",
)


def render(data: dict[str, Any], stamp: str = "") -> str:
    """Renders the page for the data of `run.page_data`.

    With a `stamp` of the data, the page asks its server for newer data.
    """
    scripts = [plotly_js(), "\n".join(_static(f"{name}.js") for name in SCRIPTS)]
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "connect-src 'self'" if stamp else "connect-src 'none'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    title = "p2o_jax: " + ", ".join(run["name"] for run in data["runs"])
    parts = {
        "POLICY": policy,
        "TITLE": _escaped(title),
        "STYLE": _static("page.css"),
        "STAMP": stamp,
        "VERSION": __version__,
        "DATA": embedded(data),
        "PLOTLY": scripts[0],
        "SCRIPT": scripts[1],
    }
    head, *rest = _static("page.html").split("{{")
    return head + "".join(
        parts[name] + text for name, text in (part.split("}}", 1) for part in rest)
    )


def is_page(path: Path) -> bool:
    """Whether the file was written by `render`, and so may be replaced."""
    if not path.is_file():
        return False
    with open(path, "rb") as f:
        return MARK in f.read(1000)


def embedded(data: Any) -> str:
    """The data as JSON that is safe inside HTML: ASCII without `<`."""
    return as_json(data).replace("<", "\\u003c")


def as_json(data: Any) -> str:
    """The data as compact JSON without NaN and infinity."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def plotly_js() -> str:
    """plotly.js from the Python package.

    Raises:
        ConfigError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as e:
        raise ConfigError(
            "the report is drawn by plotly, which is not installed: pip install 'p2o-jax[report]'"
        ) from e
    return get_plotlyjs()


def _static(name: str) -> str:
    return resources.files("p2o_jax.report").joinpath("static", name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
