// Charts by plotly, drawn when they come into view, and again when the colours, the axis or the
// data change.

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) if (entry.isIntersecting) drawChart(entry.target);
  },
  { rootMargin: "200px" },
);

/**
 * Runs plotly's script, which the page holds as text, so that there is something to read before
 * these megabytes are compiled.
 */
function loadPlotly() {
  document.body.append(el("script", {}, document.getElementById("plotly").textContent));
  for (const plot of page.charts) seen.observe(plot);
}

/**
 * A figure. `traces()` gives plotly's traces; `layout()` is merged into the common one. `note` is
 * text under the plot; `curves` are terms under it: each curve's name, meaning and dash.
 */
function chart({
  title,
  note,
  curves = [],
  traces,
  layout = () => ({}),
  tall = false,
  wide = false,
}) {
  const meanings = curves.map(([name, meaning]) => `${name}: ${meaning}`);
  const said = [title, note, ...meanings].filter(Boolean).join(". ");
  const plot = el("div", { class: tall ? "plot tall" : "plot", role: "img", "aria-label": said });
  plot.spec = { traces, layout };
  page.charts.push(plot);
  if (window.Plotly) seen.observe(plot);
  const caption = [note, curves.length ? terms(curves) : null].filter(Boolean);
  return el(
    "figure",
    { class: wide ? "wide" : "" },
    el("h3", {}, title),
    plot,
    caption.length ? el("figcaption", {}, caption) : null,
  );
}

function drawChart(plot) {
  if (!window.Plotly) return;
  const axis = {
    gridcolor: colour("line"),
    zerolinecolor: colour("line"),
    linecolor: colour("line"),
    automargin: true,
    fixedrange: false,
  };
  const own = plot.spec.layout();
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("soft"), size: 12, family: getComputedStyle(document.body).fontFamily },
    margin: { l: 44, r: 8, t: 8, b: 36 },
    hovermode: "closest",
    hoverlabel: {
      bgcolor: colour("raised"),
      bordercolor: colour("line"),
      font: { color: colour("ink") },
    },
    legend: {
      orientation: "h",
      y: 1.02,
      yanchor: "bottom",
      x: 0,
      font: { size: 12 },
      traceorder: "normal",
    },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    ...own,
    xaxis: { ...axis, ...own.xaxis },
    yaxis: { ...axis, ...own.yaxis },
  };
  Plotly.react(plot, plot.spec.traces(), layout, {
    responsive: true,
    displayModeBar: false,
    displaylogo: false,
  });
  plot.dataset.drawn = "true";
}

function redrawCharts() {
  page.charts = page.charts.filter((plot) => plot.isConnected);
  for (const plot of page.charts) if (plot.dataset.drawn) drawChart(plot);
}

/** {x, y} of a metric in a run along the chosen axis; null if the run has none. */
function series(run, name) {
  for (const kind of ["policy", "prompts", "evaluation"]) {
    const values = run.curves[kind]?.values[name];
    if (values) return { x: run.curves[kind][chosenAxis()], y: values };
  }
  return null;
}

function smoothed(values, width) {
  if (width < 2) return values;
  return values.map((value, i) => {
    const near = values.slice(Math.max(i - width + 1, 0), i + 1).filter((v) => v != null);
    return value == null || !near.length ? null : near.reduce((a, b) => a + b, 0) / near.length;
  });
}

const DASHES = ["solid", "dot", "dash"];
const AXES = { step: "policy step", tokens: "generated tokens" };
const axisTitle = () => AXES[chosenAxis()];

/** The horizontal axis of curves: the reader's choice, else the one that is fair to the runs. */
const chosenAxis = () => page.view.axis ?? defaultAxis(page.data.runs);

/**
 * Generated tokens where runs are compared, because their steps differ in cost, and where a run
 * has no steps; policy steps for one run, and where a run has generated nothing.
 */
function defaultAxis(runs) {
  const isCompared = runs.length > 1 || runs.every((run) => !run.summary.steps);
  return isCompared && runs.every((run) => run.summary.generated_tokens) ? "tokens" : "step";
}

const axisMeaning = (axis) =>
  axis === "step"
    ? "a batch of questions that is sampled, verified and learned from"
    : page.data.meanings["ledger/generated_tokens"];

/** The choice of the axis, above all charts that it moves; nothing while there is no choice. */
function renderAxis() {
  const choose = (value) => {
    page.view.axis = value;
    renderAxis();
    redrawCharts();
  };
  const menu = () => [
    select("Horizontal axis", Object.entries(AXES), chosenAxis(), choose),
    info(axisTitle(), axisMeaning(chosenAxis())),
  ];
  const isChoice = page.data.runs.some((run) => run.summary.generated_tokens);
  document.getElementById("axis").replaceChildren(...(isChoice ? menu() : []));
}

/** Traces of metrics, [[metric, its label]], of all runs: colour is the run, dash the metric. */
function curveTraces(metrics) {
  const traces = [];
  const several = page.data.runs.length > 1;
  page.data.runs.forEach((run, i) =>
    metrics.forEach(([name, what], k) => {
      const points = series(run, name);
      if (!points) return;
      const line = { color: runColour(i), dash: DASHES[k], width: 2 };
      const few = points.y.filter((v) => v != null).length < 30;
      const named =
        [several ? label(run.name) : "", metrics.length > 1 ? what : ""]
          .filter(Boolean)
          .join(", ") || label(what);
      if (page.view.smooth > 1 && !few)
        traces.push({
          x: points.x,
          y: points.y,
          mode: "lines",
          line: { ...line, width: 1 },
          opacity: 0.25,
          showlegend: false,
          hoverinfo: "skip",
        });
      traces.push({
        x: points.x,
        y: few ? points.y : smoothed(points.y, page.view.smooth),
        mode: few ? "lines+markers" : "lines",
        line,
        marker: { size: 5, color: line.color },
        name: named,
        connectgaps: true,
        showlegend: several || metrics.length > 1,
        hovertemplate: `%{y:.4~g}<br>${axisTitle()} %{x:,}<extra>${named}</extra>`,
      });
    }),
  );
  return traces;
}

function curveChart([title, kind, metrics]) {
  const present = metrics.filter(([name]) => page.data.runs.some((run) => series(run, name)));
  if (!present.length) return null;
  const yaxis = {
    share: { range: [-0.02, 1.02] },
    count: { rangemode: "tozero" },
    log: { type: "log" },
    free: {},
  }[kind];
  const meanings = present.map(([name, what], k) => [what, page.data.meanings[name], dash(k)]);
  const caption = present.length > 1 ? { curves: meanings } : { note: meanings[0][1] };
  const layout = () => ({ xaxis: { title: { text: axisTitle() } }, yaxis });
  return chart({ title, ...caption, traces: () => curveTraces(present), layout });
}

/** A sample of the dash of a chart's k-th metric. */
const dash = (k) => el("span", { class: "dash", dataset: { dash: DASHES[k] } });

const CURVES = [
  [
    "Reward",
    "share",
    [
      ["reward/mean_plain", "plain"],
      ["reward/mean_templated", "templated"],
    ],
  ],
  [
    "Groups with zero advantage",
    "share",
    [
      ["rollout/frac_zero_advantage", "all"],
      ["hard/frac_zero_advantage", "hard"],
      ["rollout/frac_zero_advantage_other", "others"],
    ],
  ],
  ["Hard questions", "count", [["gepa/hard_questions", "hard in the epoch"]]],
  [
    "Hard questions internalised",
    "count",
    [
      ["hard/num_ever", "ever hard"],
      ["hard/num_internalised", "internalised"],
      ["hard/num_relapsed", "relapsed"],
    ],
  ],
  [
    "Dev questions covered",
    "share",
    [
      ["gepa/frac_dev_covered", "by all"],
      ["gepa/best_dev_score", "by the best"],
    ],
  ],
  [
    "Informative groups expected of the next tokens",
    "count",
    [
      ["gepa/value_search", "by search"],
      ["gepa/value_training", "by training"],
    ],
  ],
  [
    "Templated tokens masked",
    "share",
    [
      ["distill/frac_masked_low", "ratio too low"],
      ["distill/frac_masked_high", "too high"],
    ],
  ],
  ["Entropy", "count", [["train/entropy", "entropy"]]],
  [
    "Response length",
    "count",
    [
      ["rollout/mean_tokens", "training"],
      ["eval/mean_tokens", "held out"],
    ],
  ],
  [
    "Truncated responses",
    "share",
    [
      ["rollout/frac_truncated", "training"],
      ["eval/frac_truncated", "held out"],
    ],
  ],
  [
    "Gap between sampler and learner",
    "log",
    [
      ["train/logprob_gap_mean", "mean"],
      ["train/logprob_gap_max", "largest"],
    ],
  ],
  ["Gradient norm", "count", [["train/grad_norm", "norm"]]],
  ["Throughput", "count", [["perf/tokens_per_s", "tokens/s"]]],
];

function renderCurves() {
  const runs = page.data.runs;
  const names = page.data.measured;
  if (!names.includes(page.view.metric)) page.view.metric = names[0];
  const longest = Math.max(...runs.map((run) => run.curves.policy?.step.length ?? 0));
  const every = Math.max(
    ...runs.flatMap((run) => Object.values(run.curves).map((kind) => kind.every)),
  );
  const slider = el("input", {
    type: "range",
    min: 1,
    max: 50,
    value: page.view.smooth,
    "aria-label": "Smoothing, points",
    oninput: () => {
      page.view.smooth = Number(slider.value);
      width.textContent = slider.value;
      redrawCharts();
    },
  });
  const width = el("output", {}, String(page.view.smooth));
  const toolbar =
    longest >= 30
      ? el("div", { class: "toolbar" }, el("label", {}, "Mean of", slider, width, "points"))
      : null;
  const meaning = el("p", { class: "soft" }, page.data.meanings[page.view.metric]);
  const any = chart({
    title: "Any metric",
    wide: true,
    traces: () => curveTraces([[page.view.metric, page.view.metric]]),
    layout: () => ({ xaxis: { title: { text: axisTitle() } } }),
  });
  const menu = select(
    "Metric",
    names.map((name) => [name, name]),
    page.view.metric,
    (value) => {
      page.view.metric = value;
      meaning.textContent = page.data.meanings[value];
      drawChart(any.querySelector(".plot"));
    },
  );
  any.querySelector("h3").after(el("div", { class: "toolbar" }, menu), meaning);
  fill(
    "curves",
    "Training",
    toolbar,
    every > 1 ? el("p", { class: "soft" }, `A point is the mean of up to ${every} rows.`) : null,
    el("div", { class: "grid" }, CURVES.map(curveChart).filter(Boolean), names.length ? any : null),
  );
}
