// Rollouts to read, with a search over their texts.

const sampleView = { run: null, page: 0, search: "", verdict: "all", prompt: "all", order: "first" };
const SAMPLES_PER_PAGE = 20;

function renderSamples() {
  const withSamples = page.data.runs.map((run, i) => (run.samples.rows.length ? i : -1)).filter((i) => i >= 0);
  if (!withSamples.length) return fill("samples", "Samples", el("p", { class: "soft" }, "None were written down."));
  const menu = runMenu(sampleView, () => { sampleView.page = 0; renderSamples(); }, withSamples);
  const run = page.data.runs[sampleView.run];
  const change = (name) => (value) => { sampleView[name] = value; sampleView.page = 0; list(); };
  const search = el("input", { type: "search", id: "sample-search", placeholder: "Search question, template, response, answer", "aria-label": "Search samples", oninput: () => change("search")(search.value) });
  search.value = sampleView.search;
  const verdicts = [...new Set(run.samples.rows.map((row) => row.status))].sort();
  if (!verdicts.includes(sampleView.verdict)) sampleView.verdict = "all";
  const rows = el("div", { class: "rows", id: "sample-rows" }), number = el("p", { class: "soft", id: "sample-count", role: "status" }), pages = el("div");
  const list = () => listSamples(rows, number, pages, list);
  fill("samples", "Samples",
    el("div", { class: "toolbar" }, menu, search,
      select("Verdict", [["all", "all"], ...verdicts.map((v) => [v, v])], sampleView.verdict, change("verdict")),
      select("Prompt", [["all", "all"], ["plain", "plain"], ["templated", "templated"]], sampleView.prompt, change("prompt")),
      select("Order", [["first", "first step first"], ["last", "last step first"]], sampleView.order, change("order"))),
    number, rows, pages);
  list();
}

function isFound(row, words) {
  if (sampleView.verdict !== "all" && row.status !== sampleView.verdict) return false;
  if (sampleView.prompt !== "all" && (sampleView.prompt === "templated") !== Boolean(row.template.trim())) return false;
  return !words || [row.question, row.template, row.response, row.answer, row.question_id].some((text) => text.toLowerCase().includes(words));
}

function listSamples(rows, number, pages, redraw) {
  const { rows: all, total } = page.data.runs[sampleView.run].samples;
  const found = all.filter((row) => isFound(row, sampleView.search.toLowerCase()));
  if (sampleView.order === "last") found.reverse();
  pages.replaceChildren(...[pager(sampleView, found.length, SAMPLES_PER_PAGE, redraw)].filter(Boolean));
  const drawn = all.length < total ? `; this page holds ${count(all.length)} of the run's ${count(total)}, drawn evenly (--samples-mb holds more)` : "";
  number.textContent = counted(found.length, "sample") + drawn;
  rows.replaceChildren(...found.slice(sampleView.page * SAMPLES_PER_PAGE, (sampleView.page + 1) * SAMPLES_PER_PAGE).map(sampleRow));
}

function sampleRow(row) {
  const body = el("div");
  const node = el("details", { ontoggle: () => { if (node.open && !body.childNodes.length) body.append(...sampleDetail(row)); } },
    el("summary", {}, el("span", { class: "soft" }, `step ${row.step}`), el("span", { class: `badge ${row.status === "correct" ? "good" : "bad"}` }, shown(row.status)),
      row.template.trim() ? el("span", { class: "badge soft" }, "templated") : null, el("span", { class: "words" }, firstWords(row.question))), body);
  return node;
}

function sampleDetail(row) {
  const part = (name, text) => [el("h4", {}, name), el("pre", { tabindex: "0" }, shown(text))];
  return [
    ...part("Question", row.question), ...(row.template.trim() ? part("Template", row.template) : []), ...part("Response", row.response), ...part("Reference answer", row.answer),
    el("p", { class: "soft" }, `reward ${row.score}, ${shown(row.status)}, ${count(row.tokens)} tokens${row.stopped === false ? ", cut at the limit" : ""}`),
  ];
}

/** Shows a question's samples. */
function searchSamples(run, questionId) {
  Object.assign(sampleView, { run, page: 0, search: questionId, verdict: "all", prompt: "all" });
  renderSamples();
  document.getElementById("samples").scrollIntoView();
  document.getElementById("sample-search").focus();
}
