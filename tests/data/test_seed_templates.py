"""Files of templates that users give."""

import json

import pytest

from p2o_jax.config import ConfigError
from p2o_jax.data import seed_templates
from p2o_jax.data.seed_templates import Seed


def test_paragraphs_are_templates(tmp_path):
    path = tmp_path / "seeds.txt"
    path.write_text(
        "\n\nThink first.\n  Then answer.\n \n\t\nBe brief.\n\nSoll größer sein.", "utf-8"
    )
    assert seed_templates.read(str(path)) == (
        Seed(f"{path}:3", "Think first.\n  Then answer."),
        Seed(f"{path}:7", "Be brief."),
        Seed(f"{path}:9", "Soll größer sein."),
    )
    assert seed_templates.read("") == ()


def test_lines_of_json_may_hold_blank_lines(tmp_path):
    path = tmp_path / "seeds.jsonl"
    rows = [{"template": " Example 1:\n\nQ\n\nA\n"}, {"template": "Be brief.", "note": 3}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert seed_templates.read(str(path)) == (
        Seed(f"{path}:1", "Example 1:\n\nQ\n\nA"),
        Seed(f"{path}:2", "Be brief."),
    )


@pytest.mark.parametrize(
    ("name", "content", "problems"),
    [
        ("a.txt", b"", [": no templates in it"]),
        ("a.txt", b"\xff\xfe", [": not UTF-8"]),
        ("a.txt", b"b c\n\nd\n\nb\nc\n", [":5: repeats the template of line 1"]),
        ("a.json", b"[]", [": suffix must be .jsonl or one of .txt, .md"]),
        (
            "a.jsonl",
            b'{"template": ""}\n{"text": "b"}\n["b"]\n{"template": 3}\n{"template": "b"}\nb\n',
            [
                ":1: `template` must be a text, and not blank",
                ":2: `template` must be a text, and not blank",
                ":3: expected a JSON object, got list",
                ":4: `template` must be a text, and not blank",
                ":6: not JSON: Expecting value: line 1 column 1 (char 0)",
            ],
        ),
    ],
)
def test_all_problems_are_reported_with_their_lines(tmp_path, name, content, problems):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as e:
        seed_templates.read(str(tmp_path / name))
    assert str(e.value).splitlines() == [f"{tmp_path / name}{problem}" for problem in problems]


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.txt: no such file"):
        seed_templates.read(str(tmp_path / "none.txt"))
    assert seed_templates.digest_of(str(tmp_path / "none.txt")) == ""
