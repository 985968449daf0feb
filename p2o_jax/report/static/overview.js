// What came out: the headline, accuracy over time and by benchmark.

function renderHeadline() {
  const headline = document.getElementById("headline"),
    marks = () => [...headline.querySelectorAll("button")];
  const focused = marks().indexOf(document.activeElement);
  headline.replaceChildren(el("div", { class: "cards" }, page.data.runs.map(runCard)));
  marks()[focused]?.focus({ preventScroll: true });
}

function runCard(run, i) {
  const { summary, config } = run;
  const { before, after } = summary;
  const { meanings } = page.data;
  const setting = (key) => shown(config[key] ?? "?");
  const facts = [
    ["Method", `${summary.method} on ${setting("data.path")}, from ${setting("model.path")}`],
    ["Preset", config.preset ?? "–"],
    [
      "Policy steps",
      count(summary.steps) + (summary.finished ? "" : ", not finished"),
      axisMeaning("step"),
    ],
    ["Generated tokens", short(summary.generated_tokens), axisMeaning("tokens")],
    ["Rollouts", short(summary.rollouts), meanings["ledger/rollouts"]],
    ["Estimated FLOPs", summary.flops ? short(summary.flops) : "–", meanings["ledger/flops"]],
    [
      "Time",
      duration(summary.seconds) +
        (summary.seconds_pretraining >= 1
          ? `, and ${duration(summary.seconds_pretraining)} of pretraining`
          : ""),
      "wall-clock time of all starts of the run",
    ],
  ];
  return el(
    "article",
    { class: "card" },
    el("h1", {}, runDot(i), shown(run.name)),
    el("p", { class: "big" }, after ? share(after.accuracy) : "–"),
    el("p", { class: "soft" }, after ? accuracyLine(before, after) : "nothing was evaluated"),
    el(
      "dl",
      { class: "facts" },
      facts.map((entry) => fact(...entry)),
    ),
    run.notes.length
      ? el(
          "div",
          { class: "notes" },
          run.notes.map((note) => el("p", {}, shown(note))),
        )
      : null,
  );
}

/** The last accuracy of a run, and the first one. */
function accuracyLine(before, after) {
  const prompts = promptsOf(before) === promptsOf(after) ? "" : `, ${promptsOf(before)}`;
  return (
    `${promptsOf(after)} accuracy on ${count(after.questions)} held-out questions,` +
    ` 95 % interval ${share(after.low)} to ${share(after.high)};` +
    ` at the start ${share(before.accuracy)}${prompts}`
  );
}

/** How an evaluation asked its questions. */
function promptsOf(evaluation) {
  return evaluation.templated ? "best-template" : "plain";
}

function accuracyTraces() {
  return page.data.runs.flatMap((run, i) => {
    const rows = run.evaluations,
      x = rows.map((row) => row[chosenAxis()]);
    const band = (y, more) => ({
      x,
      y,
      mode: "lines",
      line: { width: 0, color: runColour(i) },
      showlegend: false,
      hoverinfo: "skip",
      ...more,
    });
    return [
      band(
        rows.map((row) => row.low),
        {},
      ),
      band(
        rows.map((row) => row.high),
        { fill: "tonexty", fillcolor: runColour(i) + "22" },
      ),
      {
        x,
        y: rows.map((row) => row.accuracy),
        mode: "lines+markers",
        line: { color: runColour(i), width: 2 },
        marker: { size: 6 },
        name: label(run.name),
        showlegend: page.data.runs.length > 1,
        customdata: rows.map((row) => [row.low, row.high]),
        hovertemplate:
          "%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<br>" +
          `${axisTitle()} %{x:,}<extra>${label(run.name)}</extra>`,
      },
    ];
  });
}

function partTraces(part) {
  return page.data.runs.map((run, i) => ({
    x: run.evaluations.map((row) => row[chosenAxis()]),
    y: run.evaluations.map((row) => row.parts[part]),
    mode: "lines+markers",
    name: label(run.name),
    line: { color: runColour(i), width: 2 },
    marker: { size: 4 },
    showlegend: false,
    hovertemplate: `%{y:.3f}<extra>${label(run.name)}</extra>`,
  }));
}

const MAX_PARTS = 12; // charts of benchmarks or families

function renderAccuracy() {
  const runs = page.data.runs;
  if (!runs.some((run) => run.evaluations.length))
    return fill(
      "accuracy",
      "Accuracy",
      el("p", { class: "soft" }, "No held-out questions, no evaluation."),
    );
  const layout = () => ({
    xaxis: { title: { text: axisTitle() } },
    yaxis: { range: [-0.02, 1.02] },
  });
  const parts = [
    ...new Set(runs.flatMap((run) => run.evaluations.flatMap((row) => Object.keys(row.parts)))),
  ].sort();
  const last = (run, part) => share(run.evaluations.at(-1)?.parts[part]);
  const ways = new Set(runs.flatMap((run) => run.evaluations.map(promptsOf)));
  const prompts =
    ways.size > 1
      ? "plain prompt or, once there is one, best template"
      : ways.has("plain")
        ? "plain prompt"
        : "best template";
  fill(
    "accuracy",
    "Accuracy",
    chart({
      title: `Held-out questions, ${prompts}`,
      note:
        page.data.meanings["eval/accuracy"] +
        "; 95 % interval: Wilson's where scores are 0 or 1, Student's elsewhere",
      traces: accuracyTraces,
      layout,
      tall: true,
    }),
    parts.length > 1
      ? table(
          ["Benchmark or family", ...runs.map((run) => shown(run.name))],
          parts.map((part) => [shown(part), ...runs.map((run) => last(run, part))]),
        )
      : null,
    parts.length > MAX_PARTS
      ? el("p", { class: "soft" }, `Charts of the first ${MAX_PARTS}; the table has all.`)
      : null,
    parts.length > 1
      ? el(
          "div",
          { class: "grid" },
          parts
            .slice(0, MAX_PARTS)
            .map((part) => chart({ title: shown(part), traces: () => partTraces(part), layout })),
        )
      : null,
  );
}
