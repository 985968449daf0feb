"""The page's script without a browser: it is one program, and damaged or hostile data do not
lead it astray.
"""

import json
import shutil
import subprocess

import pytest

from p2o_jax.report import page

NODE = shutil.which("node")
PAGE = """
const nothing = () => {};
const element = () => ({
  textContent: '{"runs": []}', dataset: {}, append: nothing, setAttribute: nothing,
  addEventListener: nothing, replaceChildren: nothing,
});
const document = {
  getElementById: element, createElement: element, addEventListener: nothing, body: element(),
  querySelectorAll: () => [],
};
const matchMedia = nothing;
const window = { addEventListener: nothing, matchMedia: () => ({ addEventListener: nothing }) };
class IntersectionObserver { observe() {} }
"""


@pytest.fixture(scope="module")
def script():
    if not NODE:
        pytest.skip("no node here")
    return "".join(
        (page.resources.files("p2o_jax.report") / "static" / f"{name}.js").read_text("utf-8")
        for name in page.SCRIPTS
    )


def test_lines_have_at_most_100_columns():
    files = [
        p for p in (page.resources.files("p2o_jax.report") / "static").iterdir() if p.is_file()
    ]
    lines = {p.name: p.read_text("utf-8").splitlines() for p in files}
    assert len(lines) > len(page.SCRIPTS)
    assert [(name, line) for name in lines for line in lines[name] if len(line) > 100] == []


def test_the_script_is_one_program(script, tmp_path):
    """All of its files share one scope: a name declared in two of them leaves the page blank."""
    (tmp_path / "page.js").write_text(script)
    done = subprocess.run([NODE, "--check", tmp_path / "page.js"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def value_of(script, tmp_path):
    """The value that statements of JavaScript, after all definitions of the page, print as JSON."""

    def value(statements):
        definitions, _, _ = script.partition("\npage.view.smooth =")  # what follows renders it
        (tmp_path / "page.js").write_text(f"{PAGE}{definitions}{statements}")
        done = subprocess.run([NODE, tmp_path / "page.js"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return value


def test_runs_are_compared_along_tokens_unless_one_has_generated_none(value_of):
    """A run alone has steps, and one without training has tokens only."""
    asked = """
    const run = (steps, generated_tokens) => ({ summary: { steps, generated_tokens } });
    const [grpo, p2o, sft, gepa, begun] = [run(9, 90), run(5, 95), run(4, 0), run(0, 7), run(0, 0)];
    console.log(JSON.stringify([
      [grpo], [grpo, p2o], [grpo, p2o, sft], [gepa], [gepa, grpo], [begun], [begun, begun],
    ].map(defaultAxis)));
    """
    expected = ["step", "tokens", "step", "tokens", "tokens", "step", "step"]
    assert value_of(asked) == expected


def test_orphans_are_in_the_tree_and_objects_have_no_keys_but_their_own(value_of):
    asked = """
    const tree = { nodes: [{ id: 1, parent: 0 }, { id: 2, parent: 1 }], rejected: [] };
    const data = parsed('{"a": {"__proto__": 1}}');
    console.log(JSON.stringify([
      treeRows(tree).map((row) => row.key), data.a["__proto__"], data.constructor === undefined,
      promptsOf({ templated: true }), promptsOf({ templated: false }),
      ["Say: 1? Now.", "Say: Now.", "2?"].map((text) =>
        bareQuestion({ prompt_text: ["Say: ", " Now."] }, text))]));
    """
    assert value_of(asked) == [
        ["c1", "c2"],
        1,
        True,
        "best-template",
        "plain",
        ["1?", "Say: Now.", "2?"],
    ]
