"""Metrics of the source code: `python -m benchmarks.code [--folder FOLDER] [COMMIT ...]`.

Prints a table with a column for each commit and one for the working tree, then the places in the
working tree behind the figures. Sources are parsed and never imported. Figures cover the package's
Python files unless stated otherwise.
"""

import argparse
import ast
import io
import re
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks import report
from benchmarks.report import Target

PACKAGE = "p2o_jax"
ROWS = {
    "top_level_modules": "modules at the package's top level",
    "subpackages": "subpackages",
    "arrows": "imports between top-level modules and subpackages",
    "long_lines_py": "lines over 100 columns, all .py files",
    "long_lines_md": "lines over 100 columns, all .md files",
    "long_functions": "functions over 60 lines",
    "longest_function": "longest function",
    "long_modules": "modules over 400 lines",
    "many_parameters": "functions with five or more parameters",
    "with_args": "of which with an `Args:` section",
    "undocumented": "public functions, classes and methods without docstring",
    "any_annotations": "`Any` in annotations",
    "duplicate_classes": "class names defined in more than one module",
    "package_lines": "lines of the package",
    "test_lines": "lines of the tests",
}
TARGETS = {
    "no line over 100 columns in .py": Target("long_lines_py", "<=", 0),
    "no function over 60 lines": Target("long_functions", "<=", 0),
    "no class name defined twice": Target("duplicate_classes", "<=", 0),
    "nothing public without docstring": Target("undocumented", "<=", 0),
    "at most 12 modules at the top level": Target("top_level_modules", "<=", 12),
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
URL_ONLY = re.compile(r"\s*([-*+]\s+)?(\[[^\]]+\]:\s*)?<?https?://\S+\s*")
FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})(.*)")


def lines(text: str) -> list[str]:
    """The lines of a text, separated by line feeds only."""
    return text.removesuffix("\n").split("\n") if text else []


def definitions(node: ast.AST, outer: str = "", seen: bool = True) -> Iterator[tuple]:
    """Yields name, node and visibility of each function and class, at any depth.

    A definition is public if no part of its dotted name begins with an underscore and it is not
    inside a function.
    """
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef):
            yield from definitions(child, outer, seen)
            continue
        public = seen and not child.name.startswith("_")
        yield outer + child.name, child, public
        inner = public and isinstance(child, ast.ClassDef)
        yield from definitions(child, f"{outer}{child.name}.", inner)


def num_parameters(node: Any) -> int:
    """The number of parameters without self and cls; `*args` and `**kwargs` count as one each."""
    a = node.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if p]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def num_any(tree: ast.AST) -> int:
    """The number of occurrences of `Any` in annotations, including quoted ones."""
    fields = [getattr(n, key, None) for n in ast.walk(tree) for key in ("annotation", "returns")]
    return sum(len(re.findall(r"\bAny\b", ast.unparse(field))) for field in fields if field)


def imports(path: str, tree: ast.AST) -> Iterator[str]:
    """The dotted names that a file imports, anywhere in it: `from a import b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = PurePosixPath(path).parts[: -node.level] if node.level else ()
            names = (*above, node.module) if node.module else above
            yield from (".".join((*names, alias.name)) for alias in node.names)


def arrows(trees: Mapping[str, ast.AST]) -> set[tuple[str, str]]:
    """Pairs of top-level modules or subpackages, the first of which imports the second."""
    home = {path: path.split("/")[1].removesuffix(".py") for path in trees}
    packages = {*home.values()} - {"__init__"}
    named = {(home[p], *name.split(".")[:2]) for p, t in trees.items() for name in imports(p, t)}
    pairs = {(n[0], n[2]) for n in named if n[1] == PACKAGE and n[2:]}
    return {(a, b) for a, b in pairs if a != b and {a, b} <= packages}


def num_long_lines(path: str, text: str, columns: int = 100) -> int:
    """The number of lines over `columns` columns.

    In Markdown, tables, fenced code and lines that are a single URL do not count.
    """
    count, fence = 0, ""
    for line in (line.rstrip("\r") for line in lines(text)):
        match = FENCE.match(line) if path.endswith(".md") else None
        inside = fence
        if match and not fence:
            fence = match[1]
        elif match and match[1].startswith(fence) and not match[2].strip():
            fence = ""
        prose = not (inside or fence or line.lstrip().startswith("|") or URL_ONLY.fullmatch(line))
        count += len(line) > columns and (prose or path.endswith(".py"))
    return count


def measure(files: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Returns the figures of ROWS, and the places behind them, for .py and .md files by path."""
    trees = {p: ast.parse(t) for p, t in files.items() if re.match(rf"{PACKAGE}/.*\.py$", p)}
    heights = {path: len(lines(text)) for path, text in files.items() if path.endswith(".py")}
    wide = {path: n for path, text in files.items() if (n := num_long_lines(path, text))}
    named = [(f"{path}: {d[0]}", *d[1:]) for path, t in trees.items() for d in definitions(t)]
    functions = [(name, node) for name, node, _ in named if isinstance(node, Function)]
    sizes = [(node.end_lineno - node.lineno + 1, name) for name, node in functions]
    docs = [(name, ast.get_docstring(n) or "") for name, n in functions if num_parameters(n) >= 5]
    many = [(name, "\nArgs:\n" in doc) for name, doc in docs]
    bare = [name for name, node, public in named if public and not ast.get_docstring(node)]
    bodies = [(path, node) for path, t in trees.items() for node in ast.iter_child_nodes(t)]
    classes = sorted({(n.name, path) for path, n in bodies if isinstance(n, ast.ClassDef)})
    homes = {name: [path for n, path in classes if n == name] for name, _ in classes}
    places = {
        "long_lines_py": [f"{path} ({n})" for path, n in wide.items() if path.endswith(".py")],
        "long_lines_md": [f"{path} ({n})" for path, n in wide.items() if path.endswith(".md")],
        "long_functions": [f"{name} ({n})" for n, name in sizes if n > 60],
        "long_modules": [f"{path} ({heights[path]})" for path in trees if heights[path] > 400],
        "many_parameters": [name + (" (Args)" if args else "") for name, args in many],
        "undocumented": bare,
        "duplicate_classes": [f"{name}: {', '.join(at)}" for name, at in homes.items() if at[1:]],
    }
    figures = {name: len(listed) for name, listed in places.items()} | {
        "top_level_modules": sum(p.count("/") == 1 and "__init__" not in p for p in trees),
        "subpackages": sum(p.count("/") > 1 and p.endswith("/__init__.py") for p in trees),
        "arrows": len(arrows(trees)),
        "long_lines_py": sum(n for path, n in wide.items() if path.endswith(".py")),
        "long_lines_md": sum(n for path, n in wide.items() if path.endswith(".md")),
        "longest_function": "{1} ({0})".format(*max(sizes, default=(0, "none"))),
        "with_args": sum(args for _, args in many),
        "any_annotations": sum(map(num_any, trees.values())),
        "package_lines": sum(heights[path] for path in trees),
        "test_lines": sum(n for path, n in heights.items() if path.startswith("tests/")),
    }
    return {name: figures[name] for name in ROWS}, places


def table(columns: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table with a row for each figure and a column for each version."""
    rows = [["figure", *columns], ["---", *["---:"] * len(columns)]]
    rows += [[label, *(str(c[name]) for c in columns.values())] for name, label in ROWS.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def read(folder: Path, commit: str = "") -> dict[str, str]:
    """The .py and .md files of a commit or of the working tree, including untracked files."""

    def git(*args: str) -> bytes:
        return subprocess.run(["git", "-C", folder, *args], capture_output=True, check=True).stdout

    if not commit:
        listed = git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
        names = sorted(n for n in set(listed.decode().split("\0")) if n.endswith((".py", ".md")))
        return {n: (folder / n).read_bytes().decode() for n in names if (folder / n).is_file()}
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", commit))) as tar:
        members = [m for m in tar if m.isfile() and m.name.endswith((".py", ".md"))]
        return {m.name: tar.extractfile(m).read().decode() for m in members}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and reports."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.code", description=__doc__)
    parser.add_argument("commits", nargs="*", metavar="COMMIT")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent.parent)
    args = parser.parse_args(argv)
    try:
        columns = {commit: measure(read(args.folder, commit))[0] for commit in args.commits}
        figures, places = measure(read(args.folder))
    except subprocess.CalledProcessError as e:
        parser.error(e.stderr.decode(errors="replace").strip())
    print(table(columns | {"working tree": figures}))
    for name, listed in places.items():
        if listed:
            print("", ROWS[name].capitalize() + ":", "", *(f"- {p}" for p in listed), sep="\n")
    print()
    report.finish("code", figures, TARGETS)


if __name__ == "__main__":
    main()
