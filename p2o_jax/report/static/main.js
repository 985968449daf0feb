// The page from top to bottom, and newer data where there is a server that has it.

const SECTIONS = {
  accuracy: "Accuracy",
  curves: "Training",
  templates: "Templates",
  questions: "Hard questions",
  samples: "Samples",
  cost: "Cost",
  settings: "Settings",
};
const POLL_MS = 5000;

const PARTS = {
  axis: renderAxis,
  accuracy: renderAccuracy,
  curves: renderCurves,
  templates: renderTemplates,
  questions: renderQuestions,
  samples: renderSamples,
  cost: renderCost,
  settings: renderSettings,
};

function renderPart(id) {
  PARTS[id]();
  drawn[id] = sign(id);
}

/** By section that one reads in, what it shows changes with. */
const SIGNS = {
  templates: (run) =>
    run.templates.map((tree) => [tree.epoch, tree.nodes.length, tree.rejected_total]),
  questions: (run) => run.questions.epochs,
  samples: (run) => run.samples.total,
};
const sign = (id) => SIGNS[id] && JSON.stringify(page.data.runs.map(SIGNS[id]));
const drawn = {}; // by section, the sign when it was rendered

/**
 * Renders newer data. A section that has nothing new, or in which somebody is reading or typing,
 * stays as it is.
 */
function update(data) {
  const at = scrollY;
  page.data = data;
  const isRead = (id) =>
    document.getElementById(id).matches(":focus-within, :has(.rows > details[open])");
  renderHeadline();
  for (const id in PARTS) if (!isRead(id) && (!SIGNS[id] || sign(id) !== drawn[id])) renderPart(id);
  redrawCharts();
  scrollTo({ top: at, behavior: "instant" });
}

function follow() {
  const status = document.getElementById("status");
  let stamp = `"${document.body.dataset.stamp}"`;
  const ask = async () => {
    try {
      const reply = await fetch("/data.json", {
        headers: { "If-None-Match": stamp },
        cache: "no-store",
      });
      if (reply.status === 200) {
        stamp = reply.headers.get("ETag");
        update(parsed(await reply.text()));
      }
      status.textContent = page.data.runs.every((run) => run.summary.finished)
        ? "finished"
        : "live";
    } catch {
      status.textContent = "server gone";
    }
    setTimeout(ask, POLL_MS);
  };
  setTimeout(ask, POLL_MS);
  status.textContent = "live";
}

page.view.smooth =
  Math.max(...page.data.runs.map((run) => run.curves.policy?.step.length ?? 0)) >= 60 ? 5 : 1;
const links = Object.entries(SECTIONS).map(([id, name]) => el("a", { href: `#${id}` }, name));
document.getElementById("nav").append(el("div", { class: "links" }, links));
markOverflow(document.querySelector("#nav > .links"));
addEventListener("scroll", placeExplanation, { passive: true });
renderHeadline();
for (const id in PARTS) renderPart(id);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);
if (document.body.dataset.stamp) follow();
document.body.dataset.ready = "true";
requestAnimationFrame(() => setTimeout(loadPlotly));
