"use strict";
// Only the tiles in view exist: browsers play about a thousand videos at most, and a folder may hold a hundred thousand.

const { clips, sides } = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const [search, scale, bucket, verdict, order, count] = ["search", "scale", "bucket", "verdict", "order", "count"].map(element);
const [scroller, space, details] = ["scroller", "space", "details"].map(element);

const SMALLEST = 150, GAP = 16, CAPTION = 62, OVERSCAN = 1;
let shown = clips, selected = -1, columns = 1, pitchX = 0, pitchY = 0;
const tiles = new Map(); // number in `shown` -> element

const texts = clips.map((clip) => clip.prompt.toLowerCase());

function make(tag, parent, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = className;
  parent.append(made);
  return made;
}

function fill(select, name, values) {
  for (const value of [...new Set(values)].sort((a, b) => a < b ? -1 : 1)) {
    const option = make("option", select, `${name} ${value}`);
    option.value = value;
  }
  select.hidden = select.options.length < 3; // one value is no choice
}

function playing(parent, source, width, height) {
  const video = make("video", parent);
  Object.assign(video, { src: source, muted: true, loop: true, autoplay: true, playsInline: true, preload: "auto" });
  video.style.aspectRatio = `${width} / ${height}`;
  return video;
}

function tile(number) {
  const clip = shown[number];
  const made = make("figure", space);
  made.style.transform = `translate(${(number % columns) * pitchX}px, ${Math.floor(number / columns) * pitchY}px)`;
  made.style.width = `${pitchX - GAP}px`;
  const frame = make("div", made, "", "frame");
  frame.style.height = `${pitchY - CAPTION - GAP}px`;
  for (const file of clip.files) playing(frame, file, clip.width, clip.height);
  const caption = make("figcaption", made);
  if (clip.right !== null) make("span", caption, clip.right ? "✓ " : "✗ ", clip.right ? "right" : "wrong");
  caption.append(clip.prompt);
  made.title = clip.prompt;
  make("small", caption, ` seed ${clip.seed}, guidance ${clip.scale}`);
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
  const aspect = clips.length ? Math.max(...clips.slice(0, 1000).map((clip) => clip.height / clip.width)) : 1;
  pitchY = Math.round((pitchX - GAP) / sides.length * Math.min(aspect, 1.5)) + CAPTION + GAP;
  space.style.height = `${Math.ceil(shown.length / columns) * pitchY}px`;
  for (const number of [...tiles.keys()]) remove(number);
  show();
}

function choose() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = clips.filter((clip, number) =>
    words.every((word) => texts[number].includes(word) || String(clip.seed) === word)
    && (!scale.value || String(clip.scale) === scale.value)
    && (!bucket.value || clip.bucket === bucket.value)
    && (!verdict.value || String(clip.right) === verdict.value));
  const key = { prompt: (clip) => clip.prompt, seed: (clip) => clip.seed, verdict: (clip) => clip.right }[order.value];
  if (key) shown = [...shown].sort((a, b) => key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0);
  count.textContent = shown.length === clips.length ? `${clips.length} clips` : `${shown.length} of ${clips.length} clips`;
  selected = -1;
  details.hidden = true;
  scroller.scrollTop = 0;
  layout();
}

function select(number, open) {
  if (number < 0 || number >= shown.length) return;
  tiles.get(selected)?.classList.remove("selected");
  selected = number;
  const top = Math.floor(number / columns) * pitchY;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  if (top + pitchY > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + pitchY - scroller.clientHeight;
  show();
  tiles.get(number).classList.add("selected");
  if (open || !details.hidden) tell(shown[number]);
}

function tell(clip) {
  details.hidden = false;
  details.replaceChildren();
  make("button", details, "×").addEventListener("click", () => { details.hidden = true; });
  clip.files.forEach((file, side) => {
    if (sides.length > 1) make("h3", details, sides[side]);
    playing(details, file, clip.width, clip.height).controls = true;
  });
  const list = make("dl", details);
  for (const [name, value] of [
    ["prompt", clip.prompt], ["seed", clip.seed], ["guidance", clip.scale], ["shape", clip.bucket],
    ...(clip.right === null ? [] : [["judged", clip.right ? "shows all that its prompt says" : "shows something else"]]),
    ["file", clip.files.join("\n")],
  ]) {
    make("dt", list, name);
    make("dd", list, String(value));
  }
}

addEventListener("keydown", (event) => {
  if (event.target === search && event.key !== "Escape") return;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (step) select(selected < 0 ? 0 : selected + step, false);
  else if (event.key === "Enter" && selected >= 0) tell(shown[selected]);
  else if (event.key === "Escape") { details.hidden = true; search.blur(); }
  else if (event.key === "/") search.focus();
  else return;
  event.preventDefault();
});

fill(scale, "guidance", clips.map((clip) => clip.scale));
fill(bucket, "shape", clips.map((clip) => clip.bucket));
verdict.hidden = clips.every((clip) => clip.right === null);
if (verdict.hidden) order.querySelector("[value=verdict]").remove();
for (const control of [search, scale, bucket, verdict, order]) control.addEventListener("input", choose);
scroller.addEventListener("scroll", () => requestAnimationFrame(show));
new ResizeObserver(layout).observe(scroller);
choose();
