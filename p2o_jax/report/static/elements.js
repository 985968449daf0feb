// What sections are built of: menus, tables with scroll hints, openable rows, explained labels.

function fill(id, title, ...children) {
  const heading = el("h2", { id: `h-${id}` }, title);
  document.getElementById(id).replaceChildren(heading, ...children.filter(Boolean));
}

function select(name, options, value, onchange) {
  const choices = options.map(([key, text]) => el("option", { value: key }, shown(text)));
  const node = el("select", { onchange: () => onchange(node.value) }, choices);
  node.value = value;
  return el("label", {}, name, node);
}

/** Which run a section shows: a menu, where there are several. `state.run` is its place. */
function runMenu(state, redraw, indices = page.data.runs.map((_, i) => i)) {
  const { runs } = page.data;
  if (!indices.includes(state.run))
    state.run = indices.find((i) => runs[i].templates.length) ?? indices[0];
  if (indices.length < 2) return null;
  const options = indices.map((i) => [String(i), runs[i].name]);
  return select("Run", options, String(state.run), (value) => {
    state.run = Number(value);
    redraw();
  });
}

/** A row that opens: `line` is always visible, `detail()` is built when it is first opened. */
function openable(line, detail) {
  const body = el("div");
  const build = () => {
    if (row.open && !body.childNodes.length) body.append(...detail());
  };
  const row = el("details", { ontoggle: build }, el("summary", {}, line), body);
  return row;
}

/** Names beside their meanings: entries are [name, meaning, sample of its line or colour]. */
function terms(entries) {
  const parts = ([name, meaning, sample]) => [el("dt", {}, sample, name), el("dd", {}, meaning)];
  return el("dl", { class: "terms" }, entries.map(parts));
}

/** [dt, dd] of a figure; a mark beside the name shows the meaning, if there is one. */
function fact(name, value, meaning) {
  return [el("dt", {}, name, meaning && info(name, meaning)), el("dd", {}, value)];
}

/** A question mark beside a label, which shows what the label means. */
function info(name, meaning) {
  const mark = el(
    "button",
    {
      type: "button",
      class: "info",
      title: meaning,
      "aria-label": `What “${name}” means`,
      onclick: () => explain(mark, meaning),
    },
    "?",
  );
  mark.popoverTargetElement = document.getElementById("explanation");
  return mark;
}

let explained = null; // the mark whose meaning was shown last

/** Puts a meaning into the page's one popover. */
function explain(mark, meaning) {
  document.getElementById("explanation").textContent = meaning;
  explained = mark;
  placeExplanation();
}

/** Places the popover beside its mark. */
function placeExplanation() {
  if (!explained?.isConnected) return;
  const box = document.getElementById("explanation");
  const { top, bottom, left } = explained.getBoundingClientRect();
  const isLow = bottom > 0.7 * innerHeight;
  box.style.top = isLow ? "auto" : `${bottom + 4}px`;
  box.style.bottom = isLow ? `${innerHeight - top + 4}px` : "auto";
  box.style.left = `min(${left}px, 100vw - min(22rem, 100vw - 2rem) - 1rem)`;
}

/** Marks a box, by classes, while its content is wider than it is, and where there is more. */
function markOverflow(box) {
  const mark = () => {
    const beyond = box.scrollWidth - box.clientWidth;
    box.classList.toggle("overflows", beyond > 1);
    box.classList.toggle("more-left", box.scrollLeft > 1);
    box.classList.toggle("more-right", box.scrollLeft < beyond - 1);
    if (box.matches("[role=region]")) box.tabIndex = beyond > 1 ? 0 : -1;
  };
  box.addEventListener("scroll", mark, { passive: true });
  const observer = new ResizeObserver(mark);
  for (const node of [box, ...box.children]) observer.observe(node);
}

function table(head, rows, textColumns = []) {
  const mark = (i) => (textColumns.includes(i) ? { class: "text" } : {});
  const cells = (tag, props) => (cell, i) => el(tag, { ...props, ...mark(i) }, cell ?? "–");
  const box = el(
    "div",
    { class: "scroll", role: "region", "aria-label": "Table" },
    el(
      "table",
      {},
      el("thead", {}, el("tr", {}, head.map(cells("th", { scope: "col" })))),
      el(
        "tbody",
        {},
        rows.map((row) => el("tr", {}, row.map(cells("td", {})))),
      ),
    ),
  );
  markOverflow(box);
  const hint = el(
    "p",
    { class: "hint", "aria-hidden": "true" },
    "Scroll sideways for more columns →",
  );
  return el("div", { class: "sideways" }, hint, box);
}

/** Buttons to leaf through a list; `state.page` is the page. */
function pager(state, total, size, redraw) {
  const last = Math.max(Math.ceil(total / size) - 1, 0);
  state.page = Math.min(state.page, last);
  if (!last) return null;
  const step = (by, text) => {
    const turn = () => {
      state.page += by;
      redraw();
    };
    const disabled = state.page + by < 0 || state.page + by > last;
    return el("button", { type: "button", disabled, onclick: turn }, text);
  };
  const place = el("span", { class: "soft" }, `${state.page + 1} of ${last + 1}`);
  return el("div", { class: "toolbar" }, step(-1, "Previous"), place, step(1, "Next"));
}

/** The prompt text that all questions share, to be opened; null if there is none. */
function sharedPrompt(run) {
  const [before, after] = run.prompt_text;
  if (!before && !after) return null;
  const text = el("pre", { tabindex: "0" }, shown(`${before}…${after}`));
  return el(
    "details",
    { class: "soft" },
    el("summary", {}, "Prompt text around every question"),
    text,
  );
}
