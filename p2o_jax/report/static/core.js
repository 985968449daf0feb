"use strict";
// What every section uses: the data, the view's state, elements made of text only, numbers as
// people write them.

const page = {
  data: parsed(document.getElementById("data").textContent),
  view: { axis: null, smooth: 1, metric: "train/loss" },
  charts: [],
};

/**
 * JSON whose objects have the keys that are in it and no others: ids of questions may be
 * "constructor" or "__proto__".
 */
function parsed(text) {
  return JSON.parse(text, (_, value) =>
    value && typeof value === "object" && !Array.isArray(value)
      ? Object.assign(Object.create(null), value)
      : value,
  );
}

/**
 * An element; props are attributes, except on* (listeners) and dataset. Children are elements or
 * text, never HTML.
 */
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return node;
}

function svg(tag, props = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/**
 * The text with control characters and direction marks written out, so that none of them acts on
 * the reader's view.
 */
function shown(text) {
  const controls = "\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f";
  const marks = "\\u200b\\u200e\\u200f\\u202a-\\u202e\\u2028\\u2029\\u2066-\\u2069\\ufeff";
  return String(text).replace(
    new RegExp(`[${controls}${marks}\\ud800-\\udfff]`, "gu"),
    (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"),
  );
}

/** The text for plotly, which reads some tags in labels. */
function label(text) {
  return shown(text)
    .slice(0, 200)
    .replace(/[&<>]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[c]);
}

function firstWords(text, length = 140) {
  const flat = shown(text.slice(0, 4 * length))
    .replace(/\s+/g, " ")
    .trim();
  return flat.length > length ? flat.slice(0, length) + "…" : flat;
}

const share = (value) =>
  value == null ? "–" : value >= 0.9995 ? "1.00" : value.toFixed(3).replace(/^0/, "");
const count = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en"));

function short(value) {
  if (value == null) return "–";
  for (const [size, name] of [
    [1e18, "E"],
    [1e15, "P"],
    [1e12, "T"],
    [1e9, "G"],
    [1e6, "M"],
  ])
    if (Math.abs(value) >= size) return (value / size).toPrecision(3) + " " + name;
  return count(value);
}

function duration(seconds) {
  if (seconds == null) return "–";
  if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 6000) return `${(seconds / 60).toFixed(seconds < 600 ? 1 : 0)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** "1 thing", "2 things". */
const counted = (n, thing) => `${count(n)} ${thing}${n === 1 ? "" : "s"}`;

const capitalized = (text) => text[0].toUpperCase() + text.slice(1);

/** The value of a CSS variable, as the page's colours are now. */
const colour = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const runColour = (i) => colour(`run-${i % 6}`);

/** A dot in the colour of a CSS variable. */
function dot(name) {
  const node = el("span", { class: "dot" });
  node.style.setProperty("--dot", `var(--${name})`);
  return node;
}
const runDot = (i) => dot(`run-${i % 6}`);

/** A colour between two #rrggbb ones. */
function mixed(from, to, part) {
  const channel = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
  const between = (i) => Math.round(channel(from, i) * (1 - part) + channel(to, i) * part);
  return `rgb(${[0, 1, 2].map(between)})`;
}

/** A question without the prompt text that all questions of the run share. */
function bareQuestion(run, text) {
  const [before, after] = run.prompt_text;
  if (!text.startsWith(before) || !text.endsWith(after)) return text;
  return text.slice(before.length, text.length - after.length).trim() || text;
}

function questionText(run, id) {
  return run.question_texts[id] ?? `question ${id}`;
}
