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


def test_the_script_is_one_program(script, tmp_path):
    """All of its files share one scope: a name declared in two of them leaves the page blank."""
    (tmp_path / "page.js").write_text(script)
    done = subprocess.run([NODE, "--check", tmp_path / "page.js"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_orphans_are_in_the_tree_and_objects_have_no_keys_but_their_own(script, tmp_path):
    asked = """
    const tree = { nodes: [{ id: 1, parent: 0 }, { id: 2, parent: 1 }], rejected: [] };
    const data = parsed('{"a": {"__proto__": 1}}');
    console.log(JSON.stringify([
      treeRows(tree).map((row) => row.key), data.a["__proto__"], data.constructor === undefined,
      promptsOf({ templated: true }), promptsOf({ templated: false }),
      ["Say: 1? Now.", "Say: Now.", "2?"].map((text) =>
        bareQuestion({ prompt_text: ["Say: ", " Now."] }, text))]));
    """
    definitions, _, _ = script.partition("\npage.view.smooth =")  # what follows renders the page
    (tmp_path / "page.js").write_text(f"{PAGE}{definitions}{asked}")
    done = subprocess.run([NODE, tmp_path / "page.js"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["c1", "c2"],
        1,
        True,
        "best-template",
        "plain",
        ["1?", "Say: Now.", "2?"],
    ]
