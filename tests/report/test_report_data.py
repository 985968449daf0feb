"""What a report says: numbers by hand, nothing lost silently, and a page that holds hostile text
as data only.
"""

import http.client
import json
import math
import threading
import tracemalloc
from typing import get_args

import pytest

from p2o_jax.config import ConfigError
from p2o_jax.evaluation import estimates
from p2o_jax.report import curves, page, questions, rows, samples, serve, templates
from p2o_jax.report import run as report_run
from p2o_jax.report.__main__ import main
from p2o_jax.tracking import record_rows
from p2o_jax.tracking.metric_names import METRICS
from p2o_jax.types import STATUSES, Status

pytest.importorskip("plotly", reason="pip install 'p2o-jax[report]'")


def test_wilson_interval_by_hand():
    low, high = estimates.wilson(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)
    low, high = estimates.wilson(0.0, 128)
    assert low == 0 and math.isclose(high, 1.959964**2 / (128 + 1.959964**2))
    assert estimates.wilson(0.0, 0) == (0.0, 1.0)


def test_a_long_curve_is_thinned_by_means_but_not_what_only_grows():
    every = [
        {
            "step": i,
            "train/bad_updates": 0,
            "reward/mean": i % 2,
            "ledger/generated_tokens": 10 * i,
            "train/logprob_gap_max": i,
        }
        for i in range(2000)
    ]
    thin = curves.of_rows(every)["policy"]
    assert (thin["every"], len(thin["step"])) == (2, 1000)
    assert thin["step"][:2] == [1, 3] and thin["tokens"][:2] == [10, 30]
    assert set(thin["values"]["reward/mean"]) == {0.5}
    assert (
        thin["values"]["ledger/generated_tokens"][0] == 10
        and thin["values"]["train/logprob_gap_max"][0] == 1
    )


def test_rows_of_different_kinds_are_kept_apart_and_what_is_not_finite_is_left_out():
    built = [
        {"step": 0, "eval/accuracy": 0.25},
        {"step": 0, "train/bad_updates": 0, "train/loss": float("nan")},
        {"step": 1, "gepa/skipped": 0, "gepa/hard_questions": 3},
    ]
    result = curves.of_rows(built)
    assert result["evaluation"]["values"] == {"eval/accuracy": [0.25]} and result["prompts"][
        "values"
    ]["gepa/hard_questions"] == [3]
    assert result["policy"]["values"]["train/loss"] == [None] and curves.not_finite(built) == 1


def test_a_clipped_text_tells_what_is_missing():
    assert rows.clip("short") == "short"
    assert rows.clip("a" * 7 + "b" * 7, 10) == "aaaaa\n[… 4 characters left out …]\nbbbbb"


def test_a_smaller_share_is_part_of_a_larger_one():
    few, many = ({i for i in range(2000) if rows.is_drawn(str(i), share)} for share in (0.1, 0.4))
    assert few < many and 150 < len(few) < 250 and 700 < len(many) < 900
    assert all(rows.is_drawn(str(i), 1.0) for i in range(2000))


def test_what_is_no_row_is_told_and_a_torn_last_line_is_not(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(
        b'{"step": 1}\nhalf\n[1]\n{"step": 2}\n{"b": 2}\n{"step": 3'
    )
    notes: list[str] = []
    assert [row["step"] for row in record_rows.read(tmp_path / "metrics.jsonl", notes)] == [1, 2]
    assert notes == [
        f"metrics.jsonl:{why}; left out"
        for why in ("2: not JSON", "3: not a JSON object", "5: no `step`")
    ]


def test_a_tree_has_its_candidates_and_why_others_are_not_in_it():
    dev = {"a": 1.0, "b": 0.5, "c": 0.0}
    candidate = {
        "epoch": 3,
        "candidate": 0,
        "text": "",
        "parent": None,
        "dev_score": 0.5,
        "cover_rank": 0,
        "dev": dev,
    }
    gate = {
        "epoch": 3,
        "parent": 0,
        "text": "t",
        "outcome": "gate",
        "iteration": 1,
        "before": 1.0,
        "after": 0.0,
        "minibatch": ["a"],
    }
    (tree,) = templates.epochs([candidate, gate, {**gate, "outcome": "leak"}], success_above=0.5)
    assert tree["dev"] == ["a", "b", "c"] and tree["nodes"][0]["solves"] == "100"
    assert (
        tree["reasons"] == {"gate": 1, "leak": 1}
        and tree["rejected_total"] == 2
        and tree["rejected"][0]["after"] == 0
    )


def test_many_rejected_templates_are_drawn_and_all_are_counted(monkeypatch):
    monkeypatch.setattr(templates, "REJECTED_CHARS", 3000)
    row = {"epoch": 0, "text": "x" * 100, "outcome": "gate"}
    (tree,) = templates.epochs([row] * 200, 0.5)
    assert (
        tree["rejected_total"] == tree["reasons"]["gate"] == 200 and 3 < len(tree["rejected"]) < 35
    )


def test_the_life_of_a_question():
    row = {
        "question_id": "q",
        "hard": True,
        "plain": [0, 4],
        "templated": [0, 0],
        "templates": {},
        "first_hard_epoch": 0,
    }
    before = {**row, "epoch": 0, "internalised_epoch": None, "relapsed_epoch": None}
    after = {
        **before,
        "epoch": 1,
        "hard": False,
        "plain": [1, 2],
        "templated": [2, 3],
        "templates": {"z": [2, 3]},
        "internalised_epoch": 1,
    }
    never = {**before, "question_id": "easy", "first_hard_epoch": None}
    result = questions.lives([before, never, after, {**after, "epoch": 2}])
    assert (result["num_ever_hard"], result["num_seen"], result["epochs"]) == (1, 2, [0, 1, 2])
    life = result["questions"]["q"]
    assert life["epochs"][:2] == [[0, 1, 0, 4, 0, 0], [1, 0, 1, 2, 2, 3]] and (
        life["hard"],
        life["internalised"],
    ) == (0, 1)
    assert life["templates"] == result["templates"] == {"z": [4, 6]}


def test_samples_fit_their_budget_and_are_counted(run):
    path = run / "samples.jsonl"
    everything = samples.chosen(path, 10**9, [])
    some = samples.chosen(path, path.stat().st_size // 3, [])
    assert everything["total"] == some["total"] == len(everything["rows"]) == 64
    assert 8 < len(some["rows"]) < 36
    first = everything["rows"][0]
    assert (
        samples.question_texts(path, {first["question_id"]})[first["question_id"]]
        == everything["texts"][first["question"]]
    )
    questions = {text for text in everything["texts"] if text.startswith("question ")}
    assert len(everything["texts"]) == len(set(everything["texts"])) and 1 < len(questions) < 64, (
        "a text is in the page once"
    )


def read_pages(file, search="", status="all", prompt="all", order="first"):
    pages = [file.page(search, status, prompt, order, number) for number in range(5)]
    assert len({page["found"] for page in pages}) == 1 and sum(
        len(page["rows"]) for page in pages
    ) == min(pages[0]["found"], 100)
    return pages[0]["found"], [row for page in pages for row in page["rows"]]


def test_a_server_s_samples_are_read_page_by_page_and_searched(run):
    path = run / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    file = samples.SampleFile(path)
    result, shown = read_pages(file)
    assert result == 64 and [row["response"] for row in shown] == [row["response"] for row in rows]
    assert read_pages(file, order="last")[1] == shown[::-1]
    right = [row for row in rows if row["status"] == "correct" and not row["template"]]
    assert [row["response"] for row in read_pages(file, status="correct", prompt="plain")[1]] == [
        row["response"] for row in right
    ]
    name = rows[7]["question_id"]
    assert {row["question_id"] for row in read_pages(file, search=name.upper())[1]} == {name}
    assert read_pages(file, search="step")[0] == 0, "names of fields are not searched"
    assert (
        file.page("", "no such", "all", "first", 0)["found"]
        == file.page("", "all", "no such", "first", 0)["found"]
        == 0
    )


def test_samples_that_come_are_found_and_those_of_a_resumed_run_are_read_again(tmp_path):
    path = tmp_path / "samples.jsonl"
    file = samples.SampleFile(path)
    assert file.page("", "all", "all", "first", 0) == {
        "rows": [],
        "found": 0,
        "total": 0,
        "bad": 0,
        "statuses": [],
    }
    row = {
        "step": 0,
        "question_id": "q",
        "question": 'Ä "quoted"\nline',
        "response": "x" * 50_000,
        "status": "correct",
    }
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "question": "other"})[:60])
    assert read_pages(file)[0] == 1 and file.page("", "all", "all", "first", 0)["statuses"] == [
        "correct"
    ]
    for words in ('"QUOTED"', "ä", "\nline"):
        assert read_pages(file, search=words)[0] == 1
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "question": "other"}) + "\n[1]\n")
    assert (
        read_pages(file)[0] == 2
        and read_pages(file, search="other")[0] == 1
        and file.page("", "all", "all", "first", 0)["bad"] == 1
    )
    path.write_text(json.dumps({**row, "status": "wrong"}) + "\n")
    result, (shown,) = read_pages(file)
    assert result == 1 and shown["status"] == "wrong" and len(shown["response"]) < 21_000
    assert file.page("", "all", "all", "first", 0)["statuses"] == ["wrong"]


def test_searching_30_megabytes_takes_little_memory(tmp_path):
    path = tmp_path / "samples.jsonl"
    with open(path, "w") as f:
        for i in range(1200):
            f.write(
                json.dumps(
                    {
                        "step": i,
                        "question_id": f"q{i}",
                        "question": "?",
                        "response": f"{i} " + "word " * 5000,
                        "status": "wrong",
                    }
                )
                + "\n"
            )
    file = samples.SampleFile(path)
    tracemalloc.start()
    assert file.page("q1199", "all", "all", "last", 0)["rows"][0]["step"] == 1199
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 30e6 and peak < 3e6


def test_a_run_is_summarized_from_its_files(run):
    (shown,) = report_run.page_data([run], 10**9)["runs"]
    assert shown["name"] == "p2o" and shown["notes"] == []
    assert (
        shown["summary"]["steps"] == 16
        and shown["summary"]["generated_tokens"] == 15_000
        and shown["summary"]["finished"]
    )
    assert [tree["epoch"] for tree in shown["templates"]] == [0, 1] and len(
        shown["templates"][0]["nodes"]
    ) == 8
    assert shown["config"]["gepa.enabled"] == "true"
    assert set(shown["question_texts"]) >= set(shown["questions"]["questions"]) & {
        row["question_id"] for row in shown["samples"]["rows"]
    }


def test_every_measured_metric_has_a_meaning(tmp_path):
    """One of an evaluation set, one of a reward, and one of another version."""
    (tmp_path / "config.json").write_text("{}")
    row = {"step": 0, "train/bad_updates": 0, "reward/by_name/brevity": 0.5, "old/thing": 1}
    evaluated = {"step": 0, "eval/accuracy": 0.5, "eval/aime24/accuracy": 0.25}
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"tick": 0, **r}) + "\n" for r in (row, evaluated))
    )
    data = report_run.page_data([tmp_path], 1000)
    assert data["measured"] == sorted((row | evaluated).keys() - {"step"})
    assert data["meanings"]["eval/aime24/accuracy"] == f"aime24: {METRICS['eval/accuracy']}"
    assert data["meanings"]["reward/by_name/brevity"].startswith("brevity: mean score of a reward")
    assert data["meanings"]["old/thing"] == "unknown to this version"


def test_every_verdict_has_a_meaning():
    assert tuple(STATUSES) == get_args(Status)


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    data = report_run.page_data([tmp_path], 1000)
    assert data["runs"][0]["summary"]["after"] is None
    assert "<!doctype html>" in page.render(data)


def test_damaged_files_are_reported_and_the_rest_is_shown(run, tmp_path):
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "versions.json").write_text("{")
    (tmp_path / "questions.jsonl").write_text("{}\n" * 100)
    (shown,) = report_run.page_data([tmp_path], 1000)["runs"]
    assert shown["notes"][0] == "versions.json:1: not JSON; left out"
    assert shown["notes"][1] == "questions.jsonl:1: no `epoch`; left out"
    assert shown["notes"][-1] == "51 further notes" and len(shown["notes"]) == 51
    assert shown["summary"]["steps"] == 16


def test_a_taken_port_is_told_in_one_line(run, served):
    with pytest.raises(ConfigError, match=rf"--port={served[1]}: Address already in use"):
        main([str(run), "--serve", "--port", str(served[1])])


def test_runs_of_one_folder_are_found_and_named_by_what_differs(tmp_path):
    for name in ("a/x", "b/x", "b/y"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    result = report_run.workdirs(
        [str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "b" / "y")]
    )
    assert result == [tmp_path / "a" / "x", tmp_path / "b" / "x", tmp_path / "b" / "y"]
    assert [run["name"] for run in report_run.page_data(result, 0)["runs"]] == ["a/x", "b/x", "b/y"]
    with pytest.raises(ConfigError, match=r"nowhere: no run in it \(no config.json\)"):
        report_run.workdirs([str(tmp_path / "nowhere")])


def test_the_command_writes_one_file_that_fetches_nothing(run, tmp_path, capsys):
    main([str(run), "--out", str(tmp_path / "r.html")])
    html = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "r.html" in capsys.readouterr().out
    assert "default-src 'none'" in html and "connect-src 'none'" in html
    # a page of ours is replaced by a newer one, and nothing else is
    main([str(run), "--out", str(tmp_path / "r.html")])
    (tmp_path / "mine.html").write_text("<title>mine</title>")
    for path, rule in ((tmp_path / "mine.html", "never overwritten"), (tmp_path, "is a directory")):
        with pytest.raises(ConfigError, match=rule):
            main([str(run), "--out", str(path)])
    assert (tmp_path / "mine.html").read_text() == "<title>mine</title>"
    assert "<script src" not in html and '<link rel="stylesheet' not in html


def test_hostile_text_is_data_only(hostile_run):
    data = report_run.page_data([hostile_run], 10**9)
    html = page.render(data)
    assert (
        "window.hacked" in page.embedded(data)
        and "<" not in page.embedded(data)
        and page.embedded(data).isascii()
    )
    before, _, after = html.partition(page.embedded(data))
    assert "window.hacked" not in before + after and "<b>run" not in before + after
    assert html.count("</script>") == page.render({"runs": []}).count("</script>") == 3
    assert json.loads(page.embedded(data)) == json.loads(json.dumps(data))
    (shown,) = data["runs"]
    assert shown["notes"] == ["samples.jsonl:66: not a JSON object; left out"]
    assert (
        max(
            map(
                len,
                (
                    *shown["samples"]["texts"],
                    *(row["response"] for row in shown["samples"]["rows"]),
                ),
            )
        )
        < 21_000
    )


@pytest.fixture
def served(run):
    """(port, source run) of a server of the run."""
    with serve.server([run], 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address
        server.shutdown()
        thread.join()


def ask(address, path, **headers):
    connection = http.client.HTTPConnection(*address)
    connection.request("GET", path, headers=headers)
    reply = connection.getresponse()
    return reply.status, reply.headers, reply.read()


def test_it_is_served_on_this_machine_only_and_told_again_when_it_changed(served, run):
    assert served[0] == "127.0.0.1"
    status, _, html = ask(served, "/")
    assert (
        status == 200
        and b'data-stamp="' in html
        and b'data-stamp=""' not in html
        and b"connect-src 'self'" in html
    )
    status, headers, data = ask(served, "/data.json")
    assert status == 200 and json.loads(data)["runs"][0]["name"] == "p2o"
    known = {"If-None-Match": headers["ETag"]}
    assert ask(served, "/data.json", **known)[0] == 304
    metrics = run / "metrics.jsonl"
    before = metrics.read_bytes()
    metrics.write_bytes(before + b'{"step": 16, "train/bad_updates": 0}\n')
    status, _, data = ask(served, "/data.json", **known)
    metrics.write_bytes(before)
    assert status == 200 and json.loads(data)["runs"][0]["summary"]["steps"] == 17
    asks = "/samples.json?run=0&search=&status=all&prompt=all&order=first&page="
    status, _, data = ask(served, f"{asks}3")
    assert status == 200 and len(json.loads(data)["rows"]) == 4 and json.loads(data)["total"] == 64
    assert (
        ask(served, f"{asks}x")[0]
        == ask(served, "/samples.json")[0]
        == ask(served, f"{asks}0".replace("run=0", "run=7"))[0]
        == 404
    )
    assert ask(served, f"{asks}0", Host="evil.example:80")[0] == 403
    assert ask(served, "/etc/passwd")[0] == ask(served, "/../config.json")[0] == 404
    assert ask(served, "/data.json", Host="evil.example:80")[0] == 403


def test_a_run_without_training_is_called_by_its_name_and_its_prompts(run, tmp_path):
    """configs/baselines/gepa_only.py: "Trained: P²O, 0 steps" once, and "plain accuracy" of
    templated answers.
    """
    for path in run.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    names = {
        "P²O": {},
        "GRPO": {"gepa": {"enabled": False}},
        "GEPA once, then GRPO,": {"gepa": {"schedule": "first"}},
    }
    names["GEPA alone, no training,"] = {"gepa": {"schedule": "first"}, "train": {"epochs": 0}}
    row = {"step": 0, "accuracy": 0.1, "questions": 8, "generated_tokens": 0, "by_family": {}}
    rows = [row, {**row, "accuracy": 0.3, "template": "Think."}]
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, config in names.items():
        (tmp_path / "config.json").write_text(json.dumps(config))
        (shown,) = report_run.page_data([tmp_path], 1000)["runs"]
        assert shown["summary"]["method"] == name
    assert [row["templated"] for row in shown["evaluations"]] == [False, True]


def test_graded_scores_have_student_s_interval():
    scores = {"step": 0, "accuracy": 0.5, "questions": 4}
    (graded, right) = curves.evaluations(
        [{**scores, "standard_error": 0.12909944}, {**scores, "standard_error": 0.28867513}]
    )
    assert (graded["low"], graded["high"]) == (0.089148, 0.91085)
    assert (right["low"], right["high"]) == (0.15004, 0.84996), "Wilson's: two of four"
