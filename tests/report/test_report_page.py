"""The page in a headless browser: charts are drawn, templates and samples can be read, nothing
in them is run.
"""

import json
import threading

import pytest

from benchmarks import browser
from p2o_jax.report import page, serve
from p2o_jax.report import run as report_run

pytest.importorskip("plotly", reason="pip install 'p2o-jax[report]'")


@pytest.fixture(scope="module")
def chromium():
    try:
        with browser.opened() as opened:
            yield opened
    except browser.NoBrowser as e:
        pytest.skip(str(e))


@pytest.fixture(scope="module")
def view(chromium, tmp_path_factory):
    """Opens the report of runs; fails if the page has logged an error."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    context = chromium.new_context(viewport={"width": 1200, "height": 900})
    messages: list[str] = []

    def open_(*runs, url=None):
        tab = context.new_page()
        tab.on(
            "console",
            lambda message: (
                messages.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        tab.on("pageerror", lambda error: messages.append(str(error)))
        if not url:
            path.write_text(page.render(report_run.page_data(runs, 10**9)), encoding="utf-8")
        tab.goto(url or path.as_uri())
        tab.wait_for_selector("body[data-ready]")
        return tab

    yield open_
    context.close()
    assert messages == []


@pytest.fixture(scope="module")
def tab(view, run):
    """The report of the run, as one test after the other leaves it."""
    return view(run)


def draw_all(tab):
    """Scrolls past every chart."""
    for plot in tab.query_selector_all(".plot"):
        plot.scroll_into_view_if_needed()
        tab.wait_for_function("plot => plot.dataset.drawn", arg=plot)


def test_every_chart_is_drawn(tab):
    draw_all(tab)
    empty = (
        "all => all.filter(p => !p.querySelector('.trace, .heatmaplayer image')).map(p =>"
        " p.ariaLabel)"
    )
    assert tab.eval_on_selector_all(".plot", empty) == []
    assert tab.eval_on_selector_all(".plot", "all => all.length") >= 12
    assert tab.inner_text(".big") == ".500"


def test_two_runs_side_by_side_along_steps_or_tokens(view, run, hostile_run):
    tab = view(run, hostile_run)
    draw_all(tab)
    assert len(tab.query_selector_all(".card")) == 2
    last = (
        "() => document.querySelector('#curves .plot').data.filter(t => t.showlegend).map(t =>"
        " t.x.at(-1))"
    )
    assert tab.evaluate(last) == [15] * 4
    tab.select_option("#curves select >> nth=0", "tokens")
    assert tab.evaluate(last) == [15_000] * 4


def test_a_click_on_a_template_shows_its_text_and_the_arrow_keys_go_on(tab, run):
    node = tab.query_selector("[role=treeitem][data-key=c3]")
    node.click()
    tree = report_run.page_data([run], 0)["runs"][0]["templates"]
    shown = int(tab.input_value("#templates .toolbar select"))
    text = next(n["text"] for n in tree[shown]["nodes"] if n["id"] == 3)
    assert tab.inner_text(".template-text") == text
    tab.keyboard.press("ArrowDown")
    chosen = tab.get_attribute("[role=treeitem][aria-selected=true]", "data-key")
    assert (
        chosen not in ("c3", None) and tab.evaluate("document.activeElement.dataset.key") == chosen
    )
    tab.check("#templates input[type=checkbox]")
    tab.click(".node.rejected >> nth=0")
    assert "rejected: " in tab.inner_text(".detail")


def test_a_difference_holds_both_texts(tab):
    parts = tab.evaluate(
        "difference('add the two numbers', 'add both numbers now').map(p => p.tagName ? p.tagName +"
        " ':' + p.textContent : p)"
    )
    assert parts == ["add ", "DEL:the two numbers", "INS:both numbers now"]
    assert tab.evaluate("difference('a b c d', 'a c d').map(p => p.textContent ?? p)") == [
        "a ",
        "b ",
        "c d",
    ]


def test_search_finds_a_sample(tab, run):
    wanted = json.loads((run / "samples.jsonl").read_text().splitlines()[37])
    tab.fill("#sample-search", wanted["question"][:40].upper())
    tab.wait_for_function(
        "() => !document.getElementById('sample-count').innerText.startsWith('64')"
    )
    result = tab.inner_text("#sample-count")
    assert result.split()[0] != "64" and int(result.split()[0]) >= 1
    tab.click("#sample-rows summary >> nth=0")
    tab.wait_for_selector("#sample-rows details[open] pre")
    assert wanted["question"] in tab.inner_text("#sample-rows details >> nth=0")
    tab.fill("#sample-search", "not in any sample")
    tab.wait_for_function("() => document.getElementById('sample-count').innerText === '0 samples'")


def test_the_life_of_a_question_leads_to_its_samples(tab):
    assert len(tab.query_selector_all("#questions .rows > details")) == 12
    tab.select_option("#questions select", "internalised")
    assert "question" in tab.inner_text("#questions .rows details >> nth=0")
    tab.click("#questions .rows summary >> nth=0")
    tab.wait_for_selector("#questions .rows details[open] table")
    assert "internalised" in tab.inner_text("#questions .rows table >> nth=0")
    tab.click("#questions .rows button >> nth=0")
    assert len(tab.input_value("#sample-search")) == 16


def test_hostile_text_is_inert_and_can_be_read(view, hostile_run):
    tab = view(hostile_run)
    draw_all(tab)
    tab.check("#templates input[type=checkbox]")
    for node in tab.query_selector_all("[role=treeitem]"):
        node.click()
    for summary in tab.query_selector_all("#sample-rows summary, #questions .rows summary"):
        summary.click()
    tab.wait_for_selector("#sample-rows details[open]:last-child pre")
    assert tab.evaluate("window.hacked") is None
    assert (
        tab.evaluate("document.querySelectorAll('main img, main script, main b, main i').length")
        == 0
    )
    text = tab.inner_text("#samples")
    assert "<img src=x onerror='window.hacked = 1'>" in text
    assert "\\u001b[31m" in text and "\\u202e" in text and "\\ud800" in text and "\x1b" not in text
    tab.fill("#sample-search", "xxxxxxxxxxxx")
    tab.wait_for_function(
        "() => document.getElementById('sample-count').innerText.startsWith('1 sample')"
    )
    tab.click("#sample-rows summary >> nth=0")
    tab.wait_for_selector("#sample-rows details[open] pre")
    assert "980,000 characters left out" in tab.inner_text("#sample-rows")


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1200, "dark")])
def test_it_fits_a_phone_and_the_dark(tab, width, scheme):
    tab.set_viewport_size({"width": width, "height": 800})
    tab.emulate_media(color_scheme=scheme)
    draw_all(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(18, 21, 25)"}[scheme]


def test_a_served_page_follows_the_run(view, run):
    with serve.server([run], 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        tab = view(url=f"http://127.0.0.1:{server.server_address[1]}/")
        tab.wait_for_function(
            "() => document.getElementById('sample-count').innerText === '64 samples'"
        )
        tab.click("#samples button:text('Next')")
        tab.wait_for_function(
            "() => document.querySelectorAll('#sample-rows details').length === 20"
        )
        tab.select_option("#samples select >> nth=0", "correct")
        tab.wait_for_function(
            "() => !document.getElementById('sample-count').innerText.startsWith('64')"
        )
        tab.select_option("#samples select >> nth=0", "all")
        wanted = json.loads((run / "samples.jsonl").read_text().splitlines()[37])
        tab.fill("#sample-search", wanted["question"])
        result = (
            "id => [...document.querySelectorAll('#sample-rows summary')].every((line) =>"
            " line.innerText.includes(id))"
        )
        tab.wait_for_function(result, arg=wanted["question_id"])
        tab.click("#sample-rows summary >> nth=0")
        shown = "text => document.querySelector('#sample-rows details').innerText.includes(text)"
        tab.wait_for_function(shown, arg=wanted["question"])
        tab.click("#sample-rows summary >> nth=0")
        tab.fill("#sample-search", "known")
        metrics = run / "metrics.jsonl"
        before = metrics.read_bytes()
        metrics.write_bytes(before + b'{"step": 16, "train/bad_updates": 0}\n')
        try:
            tab.wait_for_function(
                "() => document.querySelector('dl.facts').innerText.includes('17')", timeout=15_000
            )
            assert tab.input_value("#sample-search") == "known"
            assert tab.evaluate("document.activeElement.id") == "sample-search"
        finally:
            metrics.write_bytes(before)
            tab.close()
            server.shutdown()
            thread.join()
