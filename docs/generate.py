"""Writes the pages that are made of the code: `python -m docs.generate`. A test holds that they are
up to date.

configuration.md is made of the dataclasses in p2o_jax/config/schema.py with the comments beside
their fields, metrics.md of p2o_jax/tracking/metric_names.py, departures.md of every ▲ in the
package.
"""

import ast
import dataclasses
import html
import io
import tokenize
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from p2o_jax import config
from p2o_jax.config import ranges
from p2o_jax.tracking import metric_names

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "p2o_jax"
MADE = "<!-- Made by docs/generate.py; edits here are lost. -->\n\n"


def pages() -> dict[str, str]:
    """The generated pages by file name."""
    made = {
        "configuration.md": configuration(),
        "metrics.md": metrics_reference(),
        "departures.md": departures(),
    }
    return {name: MADE + text for name, text in made.items()}


def configuration() -> str:
    """Every setting with type, default, range and the comment beside it."""
    comments = comments_of_fields((PACKAGE / "config" / "schema.py").read_text(encoding="utf-8"))
    text = (
        "# Configuration\n\nEvery setting, as `--config.SECTION.NAME=VALUE` or in a config"
        " file.\nDefaults are the paper's. "
    )
    text += (
        "Where a preset decides, both of its values are given; `--config.preset=faithful` or"
        " `recommended` chooses.\n"
    )
    top = [
        field
        for field in dataclasses.fields(config.Config)
        if not dataclasses.is_dataclass(_hints(config.Config)[field.name])
    ]
    text += "\n## The run itself\n\n" + _settings(config.Config, top, "", comments)
    for section in dataclasses.fields(config.Config):
        cls: type = _hints(config.Config)[section.name]
        if section in top:
            continue
        text += f"\n## {section.name}\n\n"
        doc = cls.__doc__ or ""
        # a dataclass without one gets its signature
        text += "" if doc.startswith(f"{cls.__name__}(") else _cell(" ".join(doc.split())) + "\n\n"
        text += _settings(cls, dataclasses.fields(cls), f"{section.name}.", comments)
    return text


def _settings(
    cls: type,
    fields: typing.Sequence[dataclasses.Field],
    prefix: str,
    comments: dict[tuple[str, str], str],
) -> str:
    rows = ["| setting | type | default | range | |", "| --- | --- | --- | --- | --- |"]
    for field in fields:
        key, hint = f"{prefix}{field.name}", _hints(cls)[field.name]
        comment = _cell(comments.get((cls.__name__, field.name), ""))
        rows.append(
            f"| `{key}` | {_type(hint)} | {_default(key, field)} | {_range(field)} | {comment} |"
        )
    return "\n".join(rows) + "\n"


def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return f"list of {typing.get_args(hint)[0].__name__}"
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    return _type(options[0]) if options else hint.__name__


def _default(key: str, field: dataclasses.Field) -> str:
    if field.default is None:
        return ", ".join(
            f"{preset}: `{values[key]}`"
            for preset, values in config.PRESETS.items()
            if key in values
        )
    return _cell(f"`{field.default}`") if field.default != "" else "empty"


def _range(field: dataclasses.Field) -> str:
    within = ranges.of(field)
    return str(within).removeprefix("in ") if within else ""


def comments_of_fields(source: str) -> dict[tuple[str, str], str]:
    """The comment of each (class, field): beside it, in the lines after it that a `;` or `,`
    leads to, or in the lines before it.
    """
    comments = {
        token.start[0]: token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()

    def alone(number: int) -> str:
        """The comment that a line consists of."""
        token = comments.get(number)
        return (
            token.string.lstrip("# ") if token and lines[number - 1].strip() == token.string else ""
        )

    found = {}
    for cls in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
        continued = 0
        for field in (
            node
            for node in cls.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        ):
            before, number = [], field.lineno - 1
            while (text := alone(number)) and number > continued:
                before.insert(0, text)
                number -= 1
            parts, number = [*before], field.end_lineno or field.lineno
            if number in comments:
                parts.append(comments[number].string.lstrip("# "))
            while parts and parts[-1].endswith((";", ",")) and (text := alone(number + 1)):
                parts.append(text)
                number += 1
            continued = number
            found[cls.name, typing.cast(ast.Name, field.target).id] = " ".join(parts)
    return found


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
    for path in sorted(PACKAGE.rglob("*.py")):
        for sentence in marked_sentences(path.read_text(encoding="utf-8")):
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
