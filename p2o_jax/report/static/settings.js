// What it cost, and with what settings and versions.

const PHASE_ORDER = ["pretraining", "rollout", "reward", "score", "update", "gepa", "eval"];
const settingsView = { search: "" };

function renderCost() {
  const runs = page.data.runs;
  const place = (phase) => PHASE_ORDER.indexOf(phase);
  const phases = [
    ...new Set(runs.flatMap((run) => Object.keys(run.summary.seconds_by_phase))),
  ].sort((a, b) => place(a) - place(b));
  const shade = (i) =>
    mixed(colour("accent"), colour("paper"), (0.85 * i) / Math.max(phases.length - 1, 1));
  const bars = () =>
    phases.map((phase, i) => ({
      type: "bar",
      orientation: "h",
      name: phase,
      y: runs.map((run) => label(run.name)),
      x: runs.map((run) => run.summary.seconds_by_phase[phase] ?? 0),
      marker: { color: shade(i), line: { color: colour("paper"), width: 1 } },
      hovertemplate: `${phase}: %{x:,.1f} s<extra></extra>`,
    }));
  const height = 130 + 36 * runs.length;
  const curves = phases.map((phase) => [phase, page.data.meanings[`time/${phase}_s`]]);
  const figure = phases.length
    ? chart({
        title: "Time by phase",
        note: "Compiling is inside the phases.",
        curves,
        wide: true,
        traces: bars,
        layout: () => ({
          barmode: "stack",
          bargap: 0.35,
          height,
          yaxis: { autorange: "reversed" },
          xaxis: { title: { text: "seconds" } },
        }),
      })
    : null;
  if (figure) figure.querySelector(".plot").style.height = `${height}px`;
  fill("cost", "Cost", figure, ...runs.map(ledgerTable));
}

function ledgerTable(run, i) {
  const rows = Object.entries(run.ledger);
  if (!rows.length) return null;
  const amounts = ["rollouts", "prompt_tokens", "generated_tokens"];
  const cells = (row) => [
    ...amounts.map((name) => count(row[name])),
    row.flops == null ? "–" : short(row.flops),
    duration(row.seconds),
  ];
  const sum = (name) =>
    rows
      .filter(([phase]) => phase !== "eval")
      .reduce((total, [, row]) => total + (row[name] ?? 0), 0);
  const total = Object.fromEntries(
    [...amounts, "flops", "seconds"].map((name) => [name, sum(name)]),
  );
  const flops = el("span", {}, "FLOPs", info("FLOPs", page.data.amounts.flops));
  return el(
    "div",
    {},
    el("h3", {}, runDot(i), shown(run.name)),
    table(
      ["Phase", ...amounts.map((name) => capitalized(page.data.amounts[name])), flops, "Time"],
      [
        ...rows.map(([phase, row]) => [page.data.phases[phase] ?? phase, ...cells(row)]),
        ["total, without evaluation", ...cells(total)],
      ],
    ),
  );
}

function renderSettings() {
  const runs = page.data.runs;
  const search = el("input", {
    type: "search",
    placeholder: "Search settings",
    "aria-label": "Search settings",
    oninput: () => {
      settingsView.search = search.value;
      list();
    },
  });
  search.value = settingsView.search;
  const holder = el("div");
  const list = () =>
    holder.replaceChildren(
      settingsTable(
        runs.map((run) => run.config),
        settingsView.search,
      ),
    );
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))];
  const differing = keys.filter((key) => new Set(runs.map((run) => run.config[key])).size > 1);
  fill(
    "settings",
    "Settings and versions",
    runs.length > 1
      ? el(
          "p",
          { class: "soft" },
          differing.length ? "Settings that differ:" : "All settings are the same.",
        )
      : null,
    runs.length > 1 && differing.length
      ? settingsTable(
          runs.map((run) => Object.fromEntries(differing.map((key) => [key, run.config[key]]))),
          "",
        )
      : null,
    el(
      "details",
      {},
      el("summary", {}, "All settings"),
      el("div", { class: "toolbar" }, search),
      holder,
    ),
    el(
      "details",
      {},
      el("summary", {}, "Versions"),
      settingsTable(
        runs.map((run) => run.versions),
        "",
      ),
    ),
  );
  list();
}

function settingsTable(columns, words) {
  const keys = [...new Set(columns.flatMap((column) => Object.keys(column)))].filter((key) =>
    key.toLowerCase().includes(words.toLowerCase()),
  );
  const differs = (key) => new Set(columns.map((column) => column[key])).size > 1;
  keys.sort((a, b) => differs(b) - differs(a));
  const head = ["Key", ...page.data.runs.map((run) => shown(run.name))];
  const made = table(
    head,
    keys.map((key) => [shown(key), ...columns.map((column) => shown(column[key] ?? "–"))]),
    [1, 2, 3, 4, 5, 6],
  );
  made
    .querySelectorAll("tbody tr")
    .forEach((row, i) => row.classList.toggle("differs", differs(keys[i])));
  return made;
}
