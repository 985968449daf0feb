"""The documentation: its generated pages are of this code, its links lead somewhere, the paths
and settings it names exist.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate, profile_picture
from p2o_jax.config.names import REMOVED

ROOT = Path(__file__).parents[2]
PAGES = sorted(ROOT.glob("docs/*.md")) + [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tpu/README.md")
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:p2o_jax|benchmarks|configs|docs|tests|tpu|gpu)/[\w./-]*)`")
PATH = re.compile(
    r"(?<![\w./-])((?:p2o_jax|benchmarks|configs|docs|tests|tpu|gpu)/"
    r"[\w./-]*\.(?:py|sh|md|npz|tsv))\b"
)
NAME = re.compile(r"(?<![\w/])p2o_jax(?:\.[A-Za-z_]\w*)+")
NO_NAMES = {"p2o_jax.json", "p2o_jax.COMMAND"}
# A placeholder; a path on a TPU worker, where p2o_jax is the folder of the checkout.
NO_PATHS = {"configs/NAME.py", "p2o_jax/tpu/worker.sh"}
SUFFIXES = {"json", "jsonl", "py", "sh", "md", "npz", "png", "html", "jinja", "lock", "toml", "com"}
MADE = generate.pages()
SETTINGS = set(re.findall(r"(?m)^\| `([a-z_.0-9]+)` \|", MADE["configuration.md"]))
SECTIONS = {name.partition(".")[0] for name in SETTINGS}
OTHER_FILES = [
    path
    for folder in ("configs", "tpu", "gpu", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".sh", ".yaml") or path.name == "Dockerfile"
]
SETTING = re.compile(r"--config\.([a-z_]+(?:\.[a-z_]+)*)=")


def prose(text: str) -> str:
    """The text without code."""
    text = re.sub(r"(?ms)^```.*?^```$|^    .*?$", "", text)
    return re.sub(r"`[^`]*`", "", text)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as MkDocs makes them."""
    titles = re.findall(r"(?m)^#+ (.*)$", text)
    return {
        re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower())
        for title in titles
    }


def missing(text: str) -> list[str]:
    """The repository paths and dotted names of the package in a text that do not exist."""
    named = set(PATH.findall(text)) - NO_PATHS
    paths = sorted(path for path in named if not (ROOT / path).exists())
    return paths + [name for name in NAME.findall(text) if not exists(name)]


def exists(name: str) -> bool:
    """Whether a dotted name is a module of the package, or is defined in one."""
    module, _, attribute = name.rpartition(".")
    if name in NO_NAMES or source_of(name) is not None:
        return True
    return bool(re.search(rf"\b{attribute}\b", source_of(module) or ""))


def source_of(module: str) -> str | None:
    """The source of a module or package; None if there is none of that name."""
    path = ROOT / module.replace(".", "/")
    files = [path / "__init__.py", path.with_suffix(".py")]
    return next((f.read_text(encoding="utf-8") for f in files if f.is_file()), None)


def unknown_names(text: str) -> list[str]:
    """The dotted names in the code spans of a page that are neither settings, of today or removed,
    nor files.
    """
    names = re.findall(r"`([a-z_]\w*(?:\.[A-Za-z_]\w*)+)`", text)
    return [
        name
        for name in names
        if name.removeprefix("config.") not in SETTINGS | SECTIONS | REMOVED
        and name.rpartition(".")[2] not in SUFFIXES
        and name.partition(".")[0] not in ("p2o_jax", "jax", "lax", "plan", "reward_model")
    ]


def dead_links(page: Path, text: str) -> list[str]:
    """The links of a page to files or headings that are not there."""
    dead = []
    for link in LINK.findall(prose(text)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if link.startswith("https://"):
            continue
        if not target.is_file() or (
            anchor and anchor not in anchors(target.read_text(encoding="utf-8"))
        ):
            dead.append(link)
    return dead


@pytest.mark.parametrize("name", MADE)
def test_generated_pages_are_up_to_date(name):
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == MADE[name], (
        "run: python -m docs.generate"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    assert dead_links(page, text) == []
    assert [path for path in FILE.findall(text) if not (ROOT / path).exists()] == []
    assert missing(text) == []


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in MADE],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_dotted_names_on_pages_are_settings_files_or_full_names(page):
    assert unknown_names(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", OTHER_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_and_names_in_configs_and_scripts_exist(path):
    assert missing(path.read_text(encoding="utf-8")) == []


def test_a_missing_path_or_name_is_reported():
    text = "`p2o_jax/none.py` p2o_jax.train.run p2o_jax.train.no_such p2o_jax.none docs/index.md"
    assert missing(text) == ["p2o_jax/none.py", "p2o_jax.train.no_such", "p2o_jax.none"]
    assert unknown_names("`guards.Watchdog` `optim.lr` `run.json` `config.mesh`") == [
        "guards.Watchdog"
    ]


def test_a_dead_link_is_found():
    page = ROOT / "docs" / "index.md"
    assert (
        dead_links(page, "[a](quickstart.md#what-happens-in-it) [b](https://x.org/y) `[c](no.md)`")
        == []
    )
    assert dead_links(page, "[a](no.md) [b](quickstart.md#no) [c](#no)") == [
        "no.md",
        "quickstart.md#no",
        "#no",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_settings_on_command_lines_exist(page):
    known = set(re.findall(r"(?m)^\| `([a-z_.0-9]+)` \|", generate.configuration())) | {
        "section.name"
    }
    assert set(SETTING.findall(page.read_text(encoding="utf-8"))) - known == set()


def test_settings_and_metrics_named_in_troubleshooting_exist():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    known = set(
        re.findall(
            r"(?m)^\| `([a-z_.0-9/]+)` \|", generate.configuration() + generate.metrics_reference()
        )
    )
    named = {
        name.partition("=")[0]
        for name in re.findall(r"`([a-z_0-9]+[./][a-z_0-9]+(?:=[^`]*)?)`", text)
    } - {"bad_batch.npz"}
    assert len(named) > 40 and named - known == set()


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="pip install 'p2o-jax[docs]'")
    pytest.importorskip("material", reason="pip install 'p2o-jax[docs]'")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "configuration.html").is_file() and not list(tmp_path.glob("*.py"))


def test_marked_sentences_by_hand():
    source = '''
    """Something. ▲ Done otherwise: the
    released code raises. Not this.

    ▲ With `a` it
    ends here.
    """
    x = 1  # ▲ to the end of the line. All of it
    y = 2  # ordinary ▲.
'''
    assert list(generate.marked_sentences(source)) == [
        "Done otherwise: the released code raises.",
        "With `a` it ends here.",
        "to the end of the line. All of it",
        "y = 2  # ordinary",
    ]


def test_every_setting_is_in_the_reference():
    text = generate.configuration()
    assert "| `gepa.fill_width` | bool | faithful: `False`, recommended: `True` |" in text
    assert (
        "| `mining.max_successes` | int | `1` | at least 0 | A question is hard if its group has"
        " at most this many successes and at least one failure. |" in text
    )
    assert (
        "| `eval.temperature` | float | `0.0` | 0, or in [0.01, 100] |" in text
        and "| `loss.dual_clip` | float | `3.0` | more than 1 |" in text
    )
    assert "{question} is replaced by it" in text and "NAME=PATH,NAME=PATH for several sets" in text


def test_scopes_of_operations_by_hand():
    hlo = """
  %fusion.1 = f32[2]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(f)/update/jvp(mlp)/dot"}
  ROOT %add.2 = f32[2]{0} add(%a, %b), metadata={op_name="jit(f)/update/transpose(attention)/add"}
  %copy.3 = f32[2]{0} copy(%a)
"""
    names = {(7, name): op_name for name, op_name in profile_picture.instructions(hlo)}
    operations = [(7, "fusion.1", 2.0), (7, "fusion.1", 1.0), (7, "add.2", 0.5), (7, "copy.3", 4.0)]
    assert profile_picture.by_scope([*operations, (8, "dot", 1.0)], names) == {
        ("update", "mlp"): 3.0,
        ("update", "attention"): 0.5,
        ("update", "other"): 4.0,
        ("other", "other"): 1.0,
    }
    assert profile_picture.scope("jit(decode_chunk)/while/body/sample_token/sort") == (
        "decode",
        "sample",
    )


def test_the_picture_of_a_profile_has_a_bar_for_each_phase(tmp_path):
    seconds = {("decode", "mlp"): 1.0, ("update", "attention"): 2.0, ("other", "other"): 0.5}
    profile_picture.draw(seconds, tmp_path / "profile.png")
    assert (tmp_path / "profile.png").stat().st_size > 5_000


def test_messages_quoted_in_troubleshooting_are_those_of_the_code():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("p2o_jax/**/*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings over several lines
    symptoms = "\n".join(re.findall(r"(?m)^\| ([^|]*) \|", text))
    quoted = [quote for quote in re.findall(r"`([^`]*)`", symptoms) if " " in quote]
    parts = [
        part.strip() for quote in quoted for part in re.split(r"…|[A-Z_]{4,}|\d+|[():]", quote)
    ]
    ours = {part for part in parts if len(part) >= 12}
    ours -= {"JAX distributed service detected fatal errors"}  # JAX's own
    assert len(ours) >= 8 and {part for part in ours if part not in source} == set()


@pytest.mark.parametrize(
    "page",
    [*(page for page in PAGES if page.name not in MADE), ROOT / "CHANGELOG.md"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_prose_has_at_most_100_columns(page):
    text = page.read_text(encoding="utf-8").partition("<!-- science")[0]
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("|")]
    assert [line for line in lines if len(line) > 100] == []


def test_the_scopes_on_the_page_about_profiling_are_those_of_the_code():
    page = (ROOT / "docs" / "profiling.md").read_text(encoding="utf-8")
    table = page.partition("| scope | contents |")[2].partition("\n\n")[0]
    source = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("p2o_jax/**/*.py"))
    named = re.findall(r"(?m)^\| `(\w+)` \|", table)
    assert len(named) >= 5 and [s for s in named if f'named_scope("{s}")' not in source] == []
