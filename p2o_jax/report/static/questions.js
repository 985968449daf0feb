// The history of each question that was ever hard.

const lifeView = { run: null, page: 0, fate: "all", search: "" };
const LIVES_PER_PAGE = 25;
// By status: its name, the colour of its badge, and the metric that counts such questions.
const FATES = {
  internalised: ["internalised", "good", "hard/num_internalised"],
  relapsed: ["relapsed", "bad", "hard/num_relapsed"],
  hard: ["still hard", "soft"],
};
const fateBadge = (fate) => el("span", { class: `badge ${FATES[fate][1]}` }, FATES[fate][0]);

function fateOf(life) {
  if (life.internalised == null && life.relapsed == null) return "hard";
  return (life.internalised ?? -1) > (life.relapsed ?? -1) ? "internalised" : "relapsed";
}

function renderQuestions() {
  const withLives = page.data.runs
    .map((run, i) => (Object.keys(run.questions.questions).length ? i : -1))
    .filter((i) => i >= 0);
  if (!withLives.length)
    return fill(
      "questions",
      "Hard questions",
      el("p", { class: "soft" }, "No epoch has ended yet, or no question was hard."),
    );
  const menu = runMenu(
    lifeView,
    () => {
      lifeView.page = 0;
      renderQuestions();
    },
    withLives,
  );
  const search = el("input", {
    type: "search",
    placeholder: "Search questions",
    "aria-label": "Search questions",
    oninput: () => {
      lifeView.search = search.value;
      lifeView.page = 0;
      list();
    },
  });
  search.value = lifeView.search;
  const rows = el("div", { class: "rows" }),
    number = el("p", { class: "soft" }),
    pages = el("div");
  const lives = page.data.runs[lifeView.run].questions;
  const list = () => listLives(rows, number, pages, list);
  fill(
    "questions",
    "Hard questions",
    el(
      "p",
      { class: "soft" },
      `${count(lives.num_ever_hard)} of ${count(lives.num_seen)} questions` +
        " were hard in some epoch.",
    ),
    ...stripTerms(),
    el(
      "div",
      { class: "toolbar" },
      menu,
      select(
        "Status",
        [["all", "all"], ...Object.entries(FATES).map(([key, [text]]) => [key, text])],
        lifeView.fate,
        (value) => {
          lifeView.fate = value;
          lifeView.page = 0;
          list();
        },
      ),
      search,
    ),
    number,
    sharedPrompt(page.data.runs[lifeView.run]),
    rows,
    pages,
  );
  list();
}

function listLives(rows, number, pages, redraw) {
  const run = page.data.runs[lifeView.run],
    all = Object.entries(run.questions.questions),
    words = lifeView.search.toLowerCase();
  const found = all.filter(
    ([id, life]) =>
      (lifeView.fate === "all" || fateOf(life) === lifeView.fate) &&
      (!words || (id + " " + questionText(run, id)).toLowerCase().includes(words)),
  );
  const place = ([, life]) => [Object.keys(FATES).indexOf(fateOf(life)), life.internalised ?? 0];
  found.sort((a, b) => place(a)[0] - place(b)[0] || place(a)[1] - place(b)[1]);
  const drawn =
    all.length < run.questions.num_ever_hard
      ? ` (${count(all.length)} of ${count(run.questions.num_ever_hard)} are in this page)`
      : "";
  pages.replaceChildren(...[pager(lifeView, found.length, LIVES_PER_PAGE, redraw)].filter(Boolean));
  number.textContent = counted(found.length, "question") + drawn;
  rows.replaceChildren(
    ...found
      .slice(lifeView.page * LIVES_PER_PAGE, (lifeView.page + 1) * LIVES_PER_PAGE)
      .map(([id, life]) => lifeRow(run, id, life)),
  );
}

/** What the strips and badges of the questions mean. */
function stripTerms() {
  const { meanings } = page.data;
  const never = "questions without a plain success after the epoch in which they became hard";
  const fates = Object.keys(FATES).map((fate) => [
    "",
    meanings[FATES[fate][2]] ?? never,
    fateBadge(fate),
  ]);
  return [
    terms([
      ["plain", "upper row: share of plain successes by epoch", dot("plain")],
      ["templated", "lower row: share of templated successes", dot("templated")],
      ["tick", "internalised in this epoch", dot("good")],
    ]),
    el("details", { class: "soft" }, el("summary", {}, "What the statuses mean"), terms(fates)),
  ];
}

function lifeRow(run, id, life) {
  const words = el("span", { class: "words" }, firstWords(questionText(run, id)));
  return openable([strip(run.questions.epochs, life), fateBadge(fateOf(life)), words], () =>
    lifeDetail(run, id, life),
  );
}

function strip(epochs, life) {
  const width = Math.max(Math.min(Math.floor(220 / epochs.length), 16), 2),
    gap = width > 4 ? 1 : 0;
  const whole = width * epochs.length;
  const drawing = svg("svg", {
    class: "strip",
    width: whole,
    height: 27,
    viewBox: `0 0 ${whole} 27`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": "Successes by epoch",
  });
  const place = new Map(epochs.map((epoch, i) => [epoch, i * width]));
  for (const [epoch, , plain, plainOf, templated, templatedOf] of life.epochs)
    [
      [plain, plainOf, 0, "plain"],
      [templated, templatedOf, 12, "templated"],
    ].forEach(([solved, of, y, name]) => {
      if (of)
        drawing.append(
          svg("rect", {
            x: place.get(epoch),
            y,
            width: width - gap,
            height: 11,
            rx: 1,
            fill: `var(--${name})`,
            "fill-opacity": 0.12 + 0.88 * (solved / of),
          }),
        );
    });
  if (life.internalised != null)
    drawing.append(
      svg("rect", {
        x: place.get(life.internalised),
        y: 24,
        width: Math.max(width - gap, 3),
        height: 3,
        fill: "var(--good)",
      }),
    );
  return drawing;
}

function lifeDetail(run, id, life) {
  const of = (solved, tried) => (tried ? `${solved} of ${tried}` : "–");
  const event = (epoch) =>
    [
      life.hard === epoch ? "first hard" : "",
      life.internalised === epoch ? "internalised" : "",
      life.relapsed === epoch ? "relapsed" : "",
    ]
      .filter(Boolean)
      .join(", ");
  const names = new Map(
    run.templates.flatMap((tree) => tree.nodes.map((node) => [node.template_id, node.text])),
  );
  const tallies = Object.entries(life.templates).sort((a, b) => b[1][0] - a[1][0]);
  const seeSamples = el(
    "button",
    { type: "button", onclick: () => searchSamples(lifeView.run, id) },
    "Its samples",
  );
  return [
    el("pre", { tabindex: "0" }, shown(questionText(run, id))),
    el("p", {}, seeSamples),
    table(
      ["Epoch", "Plain", "Templated", "Hard", ""],
      life.epochs.map(([epoch, hard, ps, pn, ts, tn]) => [
        String(epoch),
        of(ps, pn),
        of(ts, tn),
        hard ? "yes" : "no",
        event(epoch),
      ]),
      [4],
    ),
    tallies.length
      ? table(
          ["Template in training", "Succeeded"],
          tallies.map(([template, [solved, tried]]) => [
            firstWords(names.get(template) ?? template),
            of(solved, tried),
          ]),
          [0],
        )
      : null,
  ].filter(Boolean);
}
