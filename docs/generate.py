"""Writes the pages that are made of the code: `python -m docs.generate`. A test holds that they are
up to date.

configuration.md is made of the declarations in p2o_jax/config/sections, metrics.md of
p2o_jax/tracking/metric_names.py, departures.md of every ▲ in the package.
"""

import html
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path

from p2o_jax.config import Config, reference
from p2o_jax.config.setting import Setting, settings
from p2o_jax.tracking import metric_names

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "p2o_jax"
MADE = "<!-- Made by docs/generate.py; edits here are lost. -->\n\n"


def pages() -> dict[str, str]:
    """The generated pages by file name."""
    texts = {
        "configuration.md": configuration(),
        "metrics.md": metrics_reference(),
        "departures.md": departures(),
    }
    return {name: MADE + text for name, text in texts.items()}


def configuration() -> str:
    """Every setting with type, default, range and description."""
    text = (
        "# Configuration\n\nEvery setting, as `--config.SECTION.NAME=VALUE` or in a config file."
        " Every command that takes settings\nlists them with `--help-config [SECTION]`, too."
        " Defaults are the paper's. Where a preset decides, both of its\nvalues are given;"
        " `--config.preset=faithful` or `recommended` chooses. ↻ marks what may change when a run"
        " is\nresumed.\n"
    )
    for name, group in reference.by_section().items():
        title = "The run itself" if name == reference.TOP else name
        text += f"\n## {title}\n\n{_cell(reference.summary(name))}\n\n" + _table(group)
    return text


def _table(group: Iterable[Setting]) -> str:
    rows = ["| setting | type | default | range | |", "| --- | --- | --- | --- | --- |"]
    for setting in group:
        choices = ", ".join(f"`{choice}`" for choice in reference.choices(setting.hint))
        cells = (
            f"`{setting.key}`",
            choices or reference.type_name(setting.hint),
            _default(setting),
            reference.bounds(setting),
            _cell(setting.doc) + (" ↻" if setting.resumable else ""),
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _default(setting: Setting) -> str:
    values = reference.defaults(setting)
    if "" in values:
        return _cell(f"`{values['']}`") if values[""] != "" else "empty"
    return ", ".join(f"{preset}: `{value}`" for preset, value in values.items())


def metrics_reference() -> str:
    """Every metric with its meaning, by kind."""
    text = (
        "# Metrics\n\nThe names in `metrics.jsonl` and TensorBoard; the x-axis is the policy step."
        " With several evaluation sets there is\n"
    )
    text += "`eval/SET/...` for each besides `eval/...` of the first.\n"
    by_kind: dict[str, list[str]] = {}
    for name in metric_names.METRICS:
        by_kind.setdefault(name.partition("/")[0], []).append(name)
    for kind, names in by_kind.items():
        rows = "\n".join(f"| `{name}` | {_cell(metric_names.METRICS[name])} |" for name in names)
        text += f"\n## {kind}/\n\n| metric | |\n| --- | --- |\n{rows}\n"
    return text


def departures() -> str:
    """Every ▲ of the package: where, and the sentence that it stands in."""
    text = (
        "# Departures\n\nWhat is deliberately done otherwise than in the released P²O code, as the"
        " code marks it (`grep -rn ▲ p2o_jax`).\n"
    )
    text += (
        "Which of them `preset=faithful` takes back is in [Configuration](configuration.md) and"
        " [Algorithm](algorithm.md).\n\n"
    )
    text += "| file | departure |\n| --- | --- |\n"
    declared: dict[Path, list[str]] = {}
    for setting in settings(Config).values():
        if "▲" in setting.doc:
            path = Path(inspect.getfile(setting.owner))
            declared.setdefault(path, []).append(f"`{setting.key}`: {setting.doc}")
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for sentence in declared.get(path) or marked_sentences(source):
            text += f"| `{path.relative_to(DOCS.parent).as_posix()}` | {_cell(sentence)} |\n"
    return text


def marked_sentences(source: str) -> Iterator[str]:
    """From each ▲ to the end of its sentence, which may be lines below; in a comment beside code,
    to the end of the line.

    Where a ▲ ends a sentence, it is the sentence before it.
    """
    lines = source.splitlines()
    for number, line in enumerate(lines):
        for place in (i for i, c in enumerate(line) if c == "▲"):
            rest = line[place + 1 :]
            if rest.strip() in (".", "") or rest.startswith("."):
                yield line[:place].strip().strip('"')
                continue
            if "#" in line[:place]:
                yield (line[:place].split("#")[-1] + rest).strip()
                continue
            for following in lines[number + 1 :]:
                if (
                    not following.strip()
                    or '"""' in rest
                    or following.strip().startswith(("Raises:", "Args:"))
                ):
                    break
                rest += " " + following.strip()
            end = rest.replace(". ", ".\n").splitlines()[0]
            yield end.replace('"""', "").strip()


def _cell(text: str) -> str:
    """The text inside a table of Markdown: no HTML and no emphasis outside of code, no lines."""
    parts = text.replace("\n", "\\n").replace("▲ ", "").replace("|", "\\|").split("`")
    return "`".join(
        part if i % 2 else html.escape(part, quote=False).replace("*", "\\*")
        for i, part in enumerate(parts)
    )


def main() -> None:
    """Writes the pages."""
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")
        print(DOCS / name)


if __name__ == "__main__":
    main()
