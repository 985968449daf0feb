// Rollouts to read, with a search over their texts: those that the page holds, or, page by page
// from a server, all of the run's.

const sampleView = { run: null, page: 0, search: "", status: "all", prompt: "all", order: "first" };
const SAMPLES_PER_PAGE = 20;
const isServed = Boolean(document.body.dataset.stamp);
let asked = 0; // of the server, so that a late answer does not take the place of a newer one

function renderSamples() {
  const withSamples = page.data.runs
    .map((run, i) => (run.samples.total ? i : -1))
    .filter((i) => i >= 0);
  if (!withSamples.length)
    return fill("samples", "Samples", el("p", { class: "soft" }, "None were written down."));
  const menu = runMenu(
    sampleView,
    () => {
      Object.assign(sampleView, { page: 0, status: "all" });
      renderSamples();
    },
    withSamples,
  );
  const run = page.data.runs[sampleView.run];
  const change = (name) => (value) => {
    sampleView[name] = value;
    sampleView.page = 0;
    list();
  };
  const search = el("input", {
    type: "search",
    id: "sample-search",
    placeholder: "Search question, template, response, answer",
    "aria-label": "Search samples",
    oninput: () => {
      clearTimeout(search.typing);
      search.typing = setTimeout(() => change("search")(search.value), isServed ? 250 : 0);
    },
  });
  search.value = sampleView.search;
  const rows = el("div", { class: "rows", id: "sample-rows" }),
    number = el("p", { class: "soft", id: "sample-count", role: "status" }),
    pages = el("div");
  const status = select("Verdict", [["all", "all"]], "all", change("status"));
  const list = async () => {
    const found = isServed ? await ofServer() : ofPage(run.samples);
    if (found) listSamples(found, rows, number, pages, status.querySelector("select"), list);
  };
  fill(
    "samples",
    "Samples",
    el(
      "div",
      { class: "toolbar" },
      menu,
      search,
      status,
      select(
        "Prompt",
        [
          ["all", "all"],
          ["plain", "plain"],
          ["templated", "templated"],
        ],
        sampleView.prompt,
        change("prompt"),
      ),
      select(
        "Order",
        [
          ["first", "first step first"],
          ["last", "last step first"],
        ],
        sampleView.order,
        change("order"),
      ),
    ),
    number,
    sharedPrompt(run),
    rows,
    pages,
  );
  list();
}

/**
 * The page of samples that the view asks for, of the server; null if it is gone, or something newer
 * was asked meanwhile.
 */
async function ofServer() {
  const number = ++asked;
  try {
    const reply = await fetch(`/samples.json?${new URLSearchParams(sampleView)}`, {
      cache: "no-store",
    });
    const found = reply.ok ? parsed(await reply.text()) : null;
    return number === asked ? found : null;
  } catch {
    return null;
  }
}

/** The same, of the samples that the page holds. */
function ofPage({ rows, total, texts }) {
  const whole = rows.map((row) => ({
    ...row,
    question: texts[row.question],
    answer: texts[row.answer],
    template: texts[row.template],
  }));
  const found = whole.filter((row) => isFound(row, sampleView.search.toLowerCase()));
  if (sampleView.order === "last") found.reverse();
  const at = sampleView.page * SAMPLES_PER_PAGE;
  return {
    rows: found.slice(at, at + SAMPLES_PER_PAGE),
    found: found.length,
    total,
    held: rows.length,
    statuses: [...new Set(rows.map((row) => row.status))].sort(),
  };
}

function isFound(row, words) {
  if (sampleView.status !== "all" && row.status !== sampleView.status) return false;
  if (
    sampleView.prompt !== "all" &&
    (sampleView.prompt === "templated") !== Boolean(row.template.trim())
  )
    return false;
  return (
    !words ||
    [row.question, row.template, row.response, row.answer, row.question_id].some((text) =>
      text.toLowerCase().includes(words),
    )
  );
}

function listSamples(
  { rows, found, total, held = total, bad = 0, statuses },
  list,
  number,
  pages,
  menu,
  redraw,
) {
  menu.replaceChildren(
    ...["all", ...statuses].map((name) => el("option", { value: name }, shown(name))),
  );
  menu.value = statuses.includes(sampleView.status) ? sampleView.status : "all";
  pages.replaceChildren(...[pager(sampleView, found, SAMPLES_PER_PAGE, redraw)].filter(Boolean));
  const drawn =
    held < total
      ? `; this page holds ${count(held)} of the run's ${count(total)}, drawn evenly` +
        " (--samples-mb holds more, --serve has all)"
      : "";
  number.textContent =
    counted(found, "sample") +
    drawn +
    (bad ? `; ${counted(bad, "line")} of samples.jsonl cannot be read` : "");
  list.replaceChildren(...rows.map(sampleRow));
}

function sampleRow(row) {
  const run = page.data.runs[sampleView.run],
    kind = row.status === "correct" ? "good" : "bad";
  return openable(
    [
      el("span", { class: "soft" }, `step ${row.step}`),
      el(
        "span",
        { class: `badge ${kind}`, title: page.data.statuses[row.status] },
        shown(row.status),
      ),
      row.template.trim() ? el("span", { class: "badge soft" }, "templated") : null,
      el("span", { class: "words" }, firstWords(bareQuestion(run, row.question))),
    ],
    () => sampleDetail(row),
  );
}

function sampleDetail(row) {
  const part = (name, text) => [el("h4", {}, name), el("pre", { tabindex: "0" }, shown(text))];
  return [
    ...part("Question", bareQuestion(page.data.runs[sampleView.run], row.question)),
    ...(row.template.trim() ? part("Template", row.template) : []),
    ...part("Response", row.response),
    ...part("Reference answer", row.answer),
    el(
      "dl",
      { class: "facts" },
      fact("Reward", String(row.score)),
      fact(
        "Verdict",
        [shown(row.status), page.data.statuses[row.status]].filter(Boolean).join(": "),
      ),
      fact(
        "Response",
        counted(row.tokens, "token") + (row.stopped === false ? ", cut at the limit" : ""),
      ),
    ),
  ];
}

/** Shows a question's samples. */
function searchSamples(run, questionId) {
  Object.assign(sampleView, { run, page: 0, search: questionId, status: "all", prompt: "all" });
  renderSamples();
  document.getElementById("samples").scrollIntoView();
  document.getElementById("sample-search").focus();
}
