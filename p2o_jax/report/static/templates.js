// The candidate tree of each prompt phase, a template beside its parent, and the coverage matrix of
// the greedy cover.

const MAX_INDENTS = 12;
const treeView = { run: null, epoch: null, rejected: false, chosen: null };

function renderTemplates() {
  const withTrees = page.data.runs
    .map((run, i) => (run.templates.length ? i : -1))
    .filter((i) => i >= 0);
  if (!withTrees.length)
    return fill("templates", "Templates", el("p", { class: "soft" }, "No prompt phase."));
  const menu = runMenu(
    treeView,
    () => {
      treeView.epoch = treeView.chosen = null;
      renderTemplates();
    },
    withTrees,
  );
  const run = page.data.runs[treeView.run];
  const epochs = run.templates.map((tree) => tree.epoch);
  if (!epochs.includes(treeView.epoch)) treeView.epoch = mostTelling(run.templates).epoch;
  const tree = run.templates.find((t) => t.epoch === treeView.epoch);
  const choose = el("input", {
    type: "checkbox",
    onchange: () => {
      treeView.rejected = choose.checked;
      renderTemplates();
    },
  });
  choose.checked = treeView.rejected;
  const toolbar = el(
    "div",
    { class: "toolbar" },
    menu,
    select(
      "Prompt phase after epoch",
      epochs.map((e) => [String(e), String(e)]),
      String(treeView.epoch),
      (value) => {
        treeView.epoch = Number(value);
        treeView.chosen = null;
        renderTemplates();
      },
    ),
    tree.rejected.length ? el("label", {}, choose, "Show rejected proposals") : null,
  );
  const rows = treeRows(tree);
  treeView.chosen = rows.some((row) => row.key === treeView.chosen)
    ? treeView.chosen
    : bestKey(tree);
  const detail = el("div", { class: "detail", "aria-live": "polite" });
  fill(
    "templates",
    "Templates",
    toolbar,
    ...described(tree),
    el(
      "div",
      { class: "split" },
      treeList(rows, (row) => detail.replaceChildren(...templateDetail(run, tree, row))),
      detail,
    ),
    ...coverage(run, tree),
  );
  const row = rows.find((r) => r.key === treeView.chosen);
  if (row) detail.replaceChildren(...templateDetail(run, tree, row));
}

/** The phase whose best template that is not empty solves most; the last one, if there is none. */
function mostTelling(trees) {
  const best = (tree) =>
    Math.max(-1, ...tree.nodes.filter((node) => node.text).map((node) => node.score));
  return trees.reduce((a, b) => (best(b) >= best(a) ? b : a));
}

/** A reason for a rejection as [short name, meaning]; an unknown one has no meaning. */
const rejection = (outcome) => page.data.rejections[outcome] ?? [shown(outcome), ""];

/** What the phase has done: candidates, and rejected proposals with the reasons to be opened. */
function described(tree) {
  const reasons = Object.entries(tree.reasons).map(([outcome, n]) => [rejection(outcome), n]);
  const drawn =
    tree.rejected.length < tree.rejected_total
      ? ` (a random ${count(tree.rejected.length)} of them are in this page)`
      : "";
  const line = [
    `${counted(tree.rejected_total, "rejected proposal")}${drawn}`,
    reasons.map(([[short], n]) => `${count(n)} ${short}`).join(", "),
  ];
  return [
    el(
      "p",
      { class: "soft" },
      `${counted(tree.nodes.length, "candidate")}, the empty template included.` +
        " Select a row to read its template; arrow keys move between rows.",
    ),
    reasons.length
      ? el(
          "details",
          { class: "soft" },
          el("summary", {}, line.join(": ")),
          terms(reasons.map(([[short, meaning]]) => [short, meaning])),
        )
      : null,
  ].filter(Boolean);
}

function bestKey(tree) {
  const best = tree.nodes.reduce((a, b) => (b.score > (a?.score ?? -1) ? b : a), null);
  return best ? `c${best.id}` : null;
}

/**
 * The tree's rows from top to bottom: {key, rails, node} or {key, rails, rejected}. A rail for each
 * ancestor says whether it has a sibling below.
 */
function treeRows(tree) {
  const rows = [],
    children = new Map();
  const under = (parent, item) => children.set(parent, [...(children.get(parent) ?? []), item]);
  const known = new Set(tree.nodes.map((node) => node.id)),
    above = (item) => (known.has(item.parent) ? item.parent : null); // a damaged row is left out
  for (const node of tree.nodes) under(above(node), { key: `c${node.id}`, node });
  if (treeView.rejected)
    tree.rejected.forEach((rejected, i) => under(above(rejected), { key: `r${i}`, rejected }));
  const open = (children.get(null) ?? []).map((item) => [item, []]).reverse();
  while (open.length) {
    const [item, rails] = open.pop();
    rows.push({ ...item, rails });
    if (item.node)
      (children.get(item.node.id) ?? [])
        .reverse()
        .forEach((child, i) => open.push([child, [...rails, i > 0]]));
  }
  return rows;
}

const stacked = matchMedia("(max-width: 52rem)"); // the template is below the tree, by page.css

function treeList(rows, show) {
  const list = el("div", {
    class: "tree",
    role: "tree",
    "aria-label": "Templates and their children",
  });
  const nodes = rows.map((row) => {
    const node = treeNode(row, row.key === treeView.chosen);
    node.addEventListener("click", (event) => {
      treeView.chosen = row.key;
      nodes.forEach((n) => {
        n.setAttribute("aria-selected", String(n === node));
        n.tabIndex = n === node ? 0 : -1;
      });
      show(row);
      if (event.detail && stacked.matches)
        list.parentNode.querySelector(".detail").scrollIntoView({ block: "nearest" });
    });
    return node;
  });
  list.addEventListener("keydown", (event) => {
    const at = nodes.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (at < 0 || to === undefined || !nodes[to]) return;
    event.preventDefault();
    nodes[to].focus();
    nodes[to].click();
  });
  list.append(...nodes);
  return list;
}

function treeNode({ node, rejected, rails, key }, chosen) {
  const indent = 14,
    depth = rails.length,
    x = Math.min(depth, MAX_INDENTS) * indent + 10;
  const score = node?.score ?? 0;
  const drawing = svg("svg", { width: x + 10, height: 32, "aria-hidden": "true" });
  const line = (d) =>
    drawing.append(svg("path", { d, fill: "none", stroke: "var(--line)", "stroke-width": 1.5 }));
  if (depth) line(`M${x - indent} 0 V10 Q${x - indent} 16 ${x - indent + 6} 16 H${x}`);
  rails
    .slice(0, MAX_INDENTS)
    .forEach((hasSibling, i) => hasSibling && line(`M${10 + i * indent} 0 V32`));
  drawing.append(
    svg("circle", {
      cx: x,
      cy: 16,
      r: node ? 5 + 4 * score : 4,
      fill: node ? "var(--accent)" : "none",
      "fill-opacity": 0.15 + 0.85 * score,
      stroke: node ? "var(--accent)" : "var(--soft)",
      "stroke-width": node?.rank != null ? 2 : 1,
    }),
  );
  const name = node
    ? node.text
      ? firstWords(node.text)
      : "(no template)"
    : firstWords(rejected.text) || "(no text)";
  return el(
    "button",
    {
      type: "button",
      class: node ? "node" : "node rejected",
      role: "treeitem",
      "aria-level": depth + 1,
      "aria-selected": String(chosen),
      tabindex: chosen ? 0 : -1,
      dataset: { key },
    },
    drawing,
    el("span", { class: "score" }, node ? share(node.score) : ""),
    node?.rank != null ? el("span", { class: "badge good" }, `cover ${node.rank + 1}`) : null,
    rejected ? el("span", { class: "badge soft" }, rejection(rejected.outcome)[0]) : null,
    el("span", { class: "words" }, name),
  );
}

/** Where a candidate comes from. */
function origin(node) {
  if (node.parent != null) return "accepted";
  return node.id === 0
    ? "the empty template"
    : "there from the start (a seed template, or one of the last phase)";
}

/** Successes of the template's rollouts in training, which are sampled; dev is often greedy. */
function trainingShare(run, node) {
  const [successes, rollouts] = run.questions.templates[node.template_id] ?? [0, 0];
  if (!rollouts) return "";
  return `${share(successes / rollouts)} of ${counted(rollouts, "rollout")}`;
}

function candidateFacts(run, tree, node) {
  const place = node.rank == null ? "not in the cover" : `number ${node.rank + 1} of the cover`;
  const solved = node.solves.split("1").length - 1;
  const meaning = `mean score on dev questions: ${page.data.meanings["gepa/dev_questions"]}`;
  const training = trainingShare(run, node);
  return [
    fact("Status", `${origin(node)}, ${place}`),
    fact("Dev score", `${share(node.score)}, solves ${solved} of ${tree.dev.length}`, meaning),
    training ? fact("In training", `${training} succeeded`) : null,
  ];
}

function rejectionFacts({ outcome, before, after, iteration }) {
  return [
    fact("Status", `rejected: ${rejection(outcome).filter(Boolean).join("; ")}`),
    before != null ? fact("On its minibatch", `parent ${before}, child ${after}`) : null,
    fact("Iteration", String(iteration ?? "–")),
  ];
}

/** What a template has of its parent and what not; that the parent is empty, if it is. */
function againstParent(item, parent) {
  if (!parent) return null;
  if (!parent.text || !item.text) {
    const empty = parent.text ? "" : ", which is empty";
    return el("p", { class: "soft" }, `Parent: template ${parent.id}${empty}`);
  }
  return [
    el("h4", {}, `Against its parent, template ${parent.id}`),
    el("pre", { tabindex: "0" }, difference(parent.text, item.text)),
  ];
}

function questionList(run, title, ids) {
  if (!ids.length) return null;
  const items = ids.map((id) => el("li", {}, shown(questionText(run, id))));
  const list = el("ul", { class: "plainlist" }, items);
  return el("details", { open: ids.length <= 8 }, el("summary", {}, title), list);
}

function templateDetail(run, tree, { node, rejected }) {
  const item = node ?? rejected;
  const parent = tree.nodes.find((n) => n.id === item.parent);
  const ids = node ? tree.dev.filter((_, i) => node.solves[i] === "1") : rejected.minibatch;
  return [
    el("h3", {}, node ? `Template ${node.id}` : "Rejected proposal"),
    el("dl", { class: "facts" }, node ? candidateFacts(run, tree, node) : rejectionFacts(rejected)),
    el("h4", {}, "Text"),
    el("pre", { class: "template-text", tabindex: "0" }, item.text ? shown(item.text) : "(none)"),
    againstParent(item, parent),
    questionList(run, node ? `Dev questions it solves (${ids.length})` : "Its minibatch", ids),
  ]
    .flat()
    .filter(Boolean);
}

/** The greedy cover: which dev questions each template solves, and which it was the first to. */
function coverage(run, tree) {
  const cover = tree.nodes.filter((node) => node.rank != null).sort((a, b) => a.rank - b.rank);
  if (!cover.length)
    return [el("p", { class: "soft" }, "No dev question was solved, so no template covers any.")];
  const first = tree.dev.map((_, i) => cover.findIndex((node) => node.solves[i] === "1"));
  const order = tree.dev
    .map((_, i) => i)
    .sort((a, b) => (first[a] < 0 ? 1e9 : first[a]) - (first[b] < 0 ? 1e9 : first[b]) || a - b);
  const z = cover.map((node, rank) =>
    order.map((i) => (node.solves[i] !== "1" ? 0 : first[i] === rank ? 2 : 1)),
  );
  const says = ["does not solve", "solves, as one before it does", "is the first to solve"];
  const covered = first.filter((rank) => rank >= 0).length;
  const figure = chart({
    title: "Greedy cover",
    wide: true,
    note:
      "Dev questions across, templates down in the order in which they were taken:" +
      ` ${covered} of ${tree.dev.length} questions are covered.` +
      " Full colour: the first to solve it; pale: solves it, too.",
    traces: () => [
      {
        type: "heatmap",
        z,
        x: order.map((_, i) => i),
        y: cover.map((node) => `template ${node.id}`),
        zmin: 0,
        zmax: 2,
        showscale: false,
        xgap: 1,
        ygap: 2,
        colorscale: [
          [0, colour("raised")],
          [0.5, colour("accent") + "66"],
          [1, colour("accent")],
        ],
        customdata: z.map((row) =>
          row.map((value, k) => [
            says[value],
            label(firstWords(questionText(run, tree.dev[order[k]]), 80)),
          ]),
        ),
        hovertemplate: "%{y} %{customdata[0]}<br>%{customdata[1]}<extra></extra>",
      },
    ],
    layout: () => ({
      yaxis: { autorange: "reversed", fixedrange: true },
      xaxis: {
        showticklabels: false,
        ticks: "",
        showgrid: false,
        title: { text: "dev questions" },
      },
      height: 70 + 26 * Math.max(cover.length, 2),
    }),
  });
  figure.querySelector(".plot").style.height = `${70 + 26 * Math.max(cover.length, 2)}px`;
  const rows = cover.map((node, rank) => [
    String(rank + 1),
    String(node.id),
    firstWords(node.text) || "(no template)",
    share(node.score),
    trainingShare(run, node) || "–",
    String(first.filter((r) => r === rank).length),
  ]);
  const names = ["Taken", "Template", "Text", "Dev score", "In training", "Newly covered"];
  return [figure, table(names, rows, [2])];
}
