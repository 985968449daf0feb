"""The page in a headless browser: charts are drawn, templates and samples can be read, nothing
in them is run.
"""

import json
import threading

import pytest

from benchmarks import browser
from p2o_jax.report import page, serve
from p2o_jax.report import run as report_run
from p2o_jax.tracking.metric_names import METRICS

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


def last_x(tab, section):
    """The last x of each curve in the section's first chart."""
    return tab.eval_on_selector(
        f"#{section} .plot", "p => p.data.filter(t => t.hovertemplate).map(t => t.x.at(-1))"
    )


def test_two_runs_side_by_side_along_tokens_or_steps(view, run, hostile_run):
    tab = view(run, hostile_run)
    draw_all(tab)
    assert len(tab.query_selector_all(".card")) == 2
    assert tab.input_value("#axis select") == "tokens"
    assert (last_x(tab, "accuracy"), last_x(tab, "curves")) == ([16_000] * 2, [15_000] * 4)
    tab.select_option("#axis select", "step")
    assert (last_x(tab, "accuracy"), last_x(tab, "curves")) == ([16] * 2, [15] * 4)


def test_the_axis_of_one_run_is_its_steps_and_the_switch_is_above_all_that_it_moves(tab):
    draw_all(tab)
    assert tab.input_value("#axis select") == "step" and last_x(tab, "curves") == [15, 15]
    above = "s => [...document.querySelectorAll('.plot')].map(p => s.compareDocumentPosition(p))"
    following = tab.eval_on_selector("#axis select", above)
    assert set(following) == {4}, "Node.DOCUMENT_POSITION_FOLLOWING"
    tab.query_selector_all("#curves .plot")[-1].scroll_into_view_if_needed()
    nav, switch = (tab.query_selector(id_).bounding_box() for id_ in ("#nav", "#axis"))
    assert nav["y"] == 0 and abs(switch["y"] - nav["height"]) < 2, "stays below the links"


def test_every_curve_is_explained_beside_its_chart(tab):
    """By the table of metrics: each of several curves with its name and dash, one as a text."""
    drawn = (
        "CURVES.map(([title, , metrics]) => [title, metrics.filter(([name]) =>"
        " page.data.runs.some((run) => series(run, name)))])"
    )
    charts = {title: metrics for title, metrics in tab.evaluate(drawn) if metrics}
    assert len(charts) >= 10
    for title, metrics in charts.items():
        figure = tab.query_selector(f"#curves figure:has(> h3:text-is('{title}'))")
        names = [node.inner_text() for node in figure.query_selector_all("dt")]
        meanings = [node.inner_text() for node in figure.query_selector_all("dd")]
        assert names == [label for _, label in metrics if len(metrics) > 1]
        texts = meanings or [figure.query_selector("figcaption").inner_text()]
        assert texts == [METRICS[name] for name, _ in metrics]


@pytest.mark.parametrize("width", [360, 1200])
def test_a_mark_shows_what_its_label_means(tab, width):
    tab.set_viewport_size({"width": width, "height": 800})
    tab.emulate_media(reduced_motion="reduce")
    for mark in tab.query_selector_all(".info"):
        meaning = mark.get_attribute("title")
        assert mark.get_attribute("aria-label").endswith("means") and meaning
        mark.focus()
        tab.keyboard.press("Enter")
        box = tab.wait_for_selector("#explanation:popover-open")
        assert box.inner_text() == meaning
        place = box.bounding_box()
        assert place["x"] >= 0 and place["x"] + place["width"] <= width
        assert place["y"] >= 0 and place["y"] + place["height"] <= 800
        tab.keyboard.press("Escape")
        assert not box.is_visible()
    shown = [m.get_attribute("title") for m in tab.query_selector_all(".card .info")]
    assert {METRICS[f"ledger/{name}"] for name in ("generated_tokens", "rollouts", "flops")} < set(
        shown
    )


def test_rows_that_open_show_it_and_open_by_the_keyboard(tab):
    style = (
        "s => [getComputedStyle(s).cursor, getComputedStyle(s, '::before').content,"
        " getComputedStyle(s, '::before').borderLeftStyle]"
    )
    summaries = tab.query_selector_all("summary")
    assert len(summaries) > 30
    assert {tuple(summary.evaluate(style)) for summary in summaries} == {("pointer", '""', "solid")}
    row = tab.query_selector("#questions .rows > details")
    row.query_selector("summary").focus()
    assert expanded(tab) is False
    tab.keyboard.press("Enter")
    assert expanded(tab) is True and row.query_selector("table")
    turned = "s => getComputedStyle(s, '::before').rotate"
    tab.wait_for_function(f"s => ({turned})(s) === '90deg'", arg=row.query_selector("summary"))
    tab.keyboard.press("Enter")
    assert expanded(tab) is False


def expanded(tab):
    """Whether the focused element is expanded, as a screen reader is given it."""
    session = tab.context.new_cdp_session(tab)
    (focused,) = (
        {p["name"]: p["value"]["value"] for p in node["properties"]}
        for node in session.send("Accessibility.getFullAXTree")["nodes"]
        if any(p["name"] == "focused" and p["value"]["value"] for p in node.get("properties", ()))
        and node["role"]["value"] != "RootWebArea"
    )
    session.detach()
    return focused["expanded"]


def test_wide_tables_hint_at_their_further_columns_on_a_phone(tab):
    tab.set_viewport_size({"width": 360, "height": 800})
    table = tab.query_selector("#cost .sideways")
    box, hint = table.query_selector(".scroll"), table.query_selector(".hint")
    assert hint.is_visible() and box.evaluate("b => b.tabIndex") == 0
    mask = "b => getComputedStyle(b).maskImage"
    assert "gradient" in box.evaluate(mask), "fades where it continues"
    box.evaluate("b => { b.scrollLeft = b.scrollWidth; }")
    tab.wait_for_function(f"b => ({mask})(b) === 'none'", arg=box)
    first = box.query_selector("tbody td")
    assert first.bounding_box()["x"] == box.bounding_box()["x"], "the phase stays in view"
    links = tab.query_selector("#nav > .links")
    assert "gradient" in links.evaluate(mask)
    tab.set_viewport_size({"width": 1200, "height": 800})
    tab.wait_for_function("b => b.tabIndex === -1", arg=box)
    assert not hint.is_visible() and links.evaluate(mask) == "none"


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
