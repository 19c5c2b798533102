"use strict";
// Only the tiles in view exist: browsers play about a thousand videos at most, and a folder may hold a hundred thousand.

const data = JSON.parse(document.getElementById("data").textContent);
const { clips, sides } = data;
const element = (id) => document.getElementById(id);
const [search, scale, bucket, verdict, order, direction] =
  ["search", "scale", "bucket", "verdict", "order", "direction"].map(element);
const [count, filters, scroller, space, details] = ["count", "filters", "scroller", "space", "details"].map(element);

const SMALLEST = 150, GAP = 16, CAPTION = 62, OVERSCAN = 1, MOST_CHOICES = 64;
let shown = clips, selected = -1, columns = 1, pitchX = 0, pitchY = 0, isRising = true;
const tiles = new Map(); // number in `shown` -> element

const texts = clips.map((clip) => clip.prompt.toLowerCase());
const told = (value) => typeof value === "string" ? value : JSON.stringify(value);

function make(tag, parent, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  parent.append(made);
  return made;
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

function fill(select, name, values) {
  const different = [...new Set(values)].sort(compare);
  for (const value of different.slice(0, MOST_CHOICES)) {
    const option = make("option", select, `${name} ${told(value)}`);
    option.value = told(value);
  }
  if (different.length > MOST_CHOICES) make("option", select, `and ${different.length - MOST_CHOICES} more`).disabled = true;
  select.hidden = select.options.length < 3; // one value is no choice
}

function playing(parent, source, width, height) {
  const isImage = /\.(gif|webp|png)$/.test(source);
  const made = make(isImage ? "img" : "video", parent);
  if (isImage) made.src = source;
  else Object.assign(made, { src: source, muted: true, loop: true, autoplay: true, playsInline: true, preload: "auto" });
  made.style.aspectRatio = `${width} / ${height}`;
  return made;
}

// The score that the page is sorted by, as a number of its column; -1: it is sorted by something else.
const score = () => order.value.startsWith("score ") ? data.scores.indexOf(order.value.slice(6)) : -1;

function tile(number) {
  const clip = shown[number];
  const made = make("figure", space);
  made.dataset.number = number;
  made.style.transform = `translate(${(number % columns) * pitchX}px, ${Math.floor(number / columns) * pitchY}px)`;
  made.style.width = `${pitchX - GAP}px`;
  const frame = make("div", made, "", "frame");
  frame.style.height = `${pitchY - CAPTION - GAP}px`;
  for (const file of clip.files) playing(frame, file, clip.width, clip.height);
  const caption = make("figcaption", made);
  for (const right of clip.right) if (right !== null) make("span", caption, right ? "✓ " : "✗ ", right ? "right" : "wrong");
  const value = clip.scores[score()];
  if (value !== undefined && value !== null) make("b", caption, `${value} `);
  caption.append(clip.prompt);
  made.title = clip.prompt;
  make("small", caption, ` seed ${clip.seed}, guidance ${[...new Set(clip.scales)].join(" / ")}`);
  made.addEventListener("click", () => select(number, true));
  made.classList.toggle("selected", number === selected);
  return made;
}

function remove(number) {
  for (const video of tiles.get(number).querySelectorAll("video")) {
    video.removeAttribute("src"); // frees its decoder at once
    video.load();
  }
  tiles.get(number).remove();
  tiles.delete(number);
}

function show() {
  const first = Math.max(0, Math.floor(scroller.scrollTop / pitchY) - OVERSCAN) * columns;
  const last = (Math.ceil((scroller.scrollTop + scroller.clientHeight) / pitchY) + OVERSCAN) * columns;
  for (const number of [...tiles.keys()]) if (number < first || number >= last) remove(number);
  for (let number = first; number < Math.min(last, shown.length); number++) {
    if (!tiles.has(number)) tiles.set(number, tile(number));
  }
}

function layout() {
  const width = space.clientWidth;
  columns = Math.max(1, Math.floor((width + GAP) / (SMALLEST * sides.length + GAP)));
  pitchX = (width + GAP) / columns;
  const aspect = clips.length ? clips.slice(0, 1000).reduce((most, clip) => Math.max(most, clip.height / clip.width), 0) : 1;
  pitchY = Math.round((pitchX - GAP) / sides.length * Math.min(aspect, 1.5)) + CAPTION + GAP;
  space.style.height = `${Math.ceil(shown.length / columns) * pitchY}px`;
  for (const number of [...tiles.keys()]) remove(number);
  if (selected >= 0) bringIntoView(selected);
  show();
}

function bringIntoView(number) {
  const top = Math.floor(number / columns) * pitchY;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  if (top + pitchY > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + pitchY - scroller.clientHeight;
}

function sorted(list) {
  const column = score();
  const key = { "": null, prompt: (clip) => clip.prompt, seed: (clip) => clip.seed, verdict: (clip) => clip.right.map(Number).join() }[order.value]
    ?? (column < 0 ? null : (clip) => clip.scores[column]);
  if (key === null) return isRising ? list : [...list].reverse();
  const isKnown = (clip) => key(clip) !== undefined && key(clip) !== null;
  const known = list.filter(isKnown).sort((a, b) => (isRising ? 1 : -1) * compare(key(a), key(b)));
  return [...known, ...list.filter((clip) => !isKnown(clip))]; // what has no score comes last
}

function choose() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...filters.children].filter((filter) => filter.value);
  shown = sorted(clips.filter((clip, number) =>
    words.every((word) => texts[number].includes(word) || String(clip.seed) === word)
    && (!scale.value || clip.scales.some((each) => String(each) === scale.value))
    && (!bucket.value || clip.bucket === bucket.value)
    && (!verdict.value || clip.right.some((right) => String(right) === verdict.value))
    && wanted.every((filter) => clip.settings.some((each) => told(data.settings[each][filter.dataset.setting] ?? null) === filter.value))));
  const what = sides.length > 1 ? "pairs" : "clips";
  count.textContent = shown.length === clips.length ? `${clips.length} ${what}` : `${shown.length} of ${clips.length} ${what}`;
  direction.textContent = isRising ? "↑" : "↓";
  selected = -1;
  details.hidden = true;
  scroller.scrollTop = 0;
  layout();
}

function select(number, open) {
  if (number < 0 || number >= shown.length) return;
  tiles.get(selected)?.classList.remove("selected");
  selected = number;
  bringIntoView(number);
  show();
  tiles.get(number).classList.add("selected");
  if (open || !details.hidden) tell(shown[number]);
}

// Where the clip lies: the page knows it by a relative path, and its own place from the browser.
function placeOf(file) {
  const url = new URL(file, location.href);
  return url.protocol === "file:" ? decodeURIComponent(url.pathname) : decodeURIComponent(file);
}

const quoted = (text) => /^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

function list(rows, parent = details) {
  const table = make("table", parent);
  for (const [name, value] of rows) {
    const row = make("tr", table);
    make("td", row, name);
    make("td", row, told(value));
  }
}

function tell(clip) {
  details.hidden = false;
  details.replaceChildren();
  const close = make("button", details, "×");
  close.setAttribute("aria-label", "close");
  close.addEventListener("click", () => { details.hidden = true; });
  make("p", details, clip.prompt);
  clip.files.forEach((file, side) => {
    if (sides.length > 1) make("h3", details, sides[side]);
    playing(details, file, clip.width, clip.height).controls = true;
    const settings = data.settings[clip.settings[side]], right = clip.right[side];
    if (Object.keys(settings).length) {
      make("small", details, "makes this clip again:");
      make("code", details, `reelflow remake ${quoted(placeOf(file))}`);
    }
    list([
      ...(right === null ? [] : [["judged", right ? "shows all that its prompt says" : "shows something else"]]),
      ["seed", clip.seed], ["guidance_scale", clip.scales[side]], ["shape", clip.bucket],
      ...Object.entries(settings), ...Object.entries(clip.provenance[side]), ["file", placeOf(file)],
    ]);
  });
  if (clip.scores.length) {
    make("h3", details, "scores");
    list(data.scores.map((name, column) => [name, clip.scores[column] ?? "unknown"]));
  }
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    details.hidden = true;
    document.activeElement.blur();
    return;
  }
  // a field has its own use of these keys
  if (/^(INPUT|SELECT|BUTTON|VIDEO)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (step) select(selected < 0 ? 0 : selected + step, false);
  else if (event.key === "Home") select(0, false);
  else if (event.key === "End") select(shown.length - 1, false);
  else if (event.key === "Enter" && selected >= 0) tell(shown[selected]);
  else if (event.key === "/") search.focus();
  else return;
  event.preventDefault();
});

fill(scale, "guidance", clips.flatMap((clip) => clip.scales));
fill(bucket, "shape", clips.map((clip) => clip.bucket));
for (const name of new Set(data.settings.flatMap(Object.keys))) {
  const filter = make("select", filters);
  filter.dataset.setting = name;
  filter.setAttribute("aria-label", name);
  make("option", filter, `any ${name}`).value = "";
  fill(filter, name, data.settings.map((settings) => settings[name] ?? null));
}
for (const name of data.scores) make("option", order, `by ${name}`).value = `score ${name}`;
verdict.hidden = clips.every((clip) => clip.right.every((right) => right === null));
if (verdict.hidden) order.querySelector("[value=verdict]").remove();
for (const control of [search, scale, bucket, verdict, order, ...filters.children]) control.addEventListener("input", choose);
direction.addEventListener("click", () => { isRising = !isRising; choose(); });
scroller.addEventListener("scroll", () => requestAnimationFrame(show));
new ResizeObserver(layout).observe(scroller);
choose();
