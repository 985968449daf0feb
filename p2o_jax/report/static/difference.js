// What two texts share, and what only one of them has.

const MAX_CELLS = 4e6; // of the table that finds what two texts share

/**
 * Nodes that show what was taken out of a text and put into it: by words, or by lines where there
 * are too many words.
 */
function difference(old, now) {
  for (const pieces of [/\S+\s*|\s+/g, /[^\n]*\n|[^\n]+/g]) {
    const a = shown(old).match(pieces) ?? [],
      b = shown(now).match(pieces) ?? [];
    if (a.length * b.length <= MAX_CELLS) return marked(a, b);
  }
  return ["(too long to compare)"];
}

function marked(a, b) {
  const width = b.length + 1,
    common = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      common[i * width + j] =
        a[i] === b[j]
          ? common[(i + 1) * width + j + 1] + 1
          : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
  const parts = [];
  const add = (tag, text) =>
    parts.at(-1)?.[0] === tag ? (parts.at(-1)[1] += text) : parts.push([tag, text]);
  let i = 0,
    j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      add("", a[i++]);
      j++;
    } else if (
      j >= b.length ||
      (i < a.length && common[(i + 1) * width + j] >= common[i * width + j + 1])
    )
      add("del", a[i++]);
    else add("ins", b[j++]);
  }
  return parts.map(([tag, text]) => (tag ? el(tag, {}, text) : text));
}
