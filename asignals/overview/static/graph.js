"use strict";
// Draws the graph that stands in the page as JSON. Text goes into the page as text, never as markup.
const { nodes, edges, folded } = JSON.parse(document.getElementById("graph").textContent);
const picture = document.getElementById("picture");
const SVG = "http://www.w3.org/2000/svg";
const ROW = 60, BOX = 46, GAP = 56, TOP = 60, MARGIN = 24, CHARACTER = 7.3, NARROW = 150, WIDE = 440, LABEL = 6.8;
// From the left: topics that are received, who sends, the signals, who hears, topics that are exported to.
const COLUMNS = 5, SIGNALS = 2;
const COLUMN = { sender: 1, signal: SIGNALS, receiver: 3 };
const TITLES = { sender: "SENDERS", signal: "SIGNALS", receiver: "RECEIVERS", service: "SERVICES", topic: "TOPICS" };
const packages = new Set();
const state = { folded: new Set(), search: "", chosen: null, x: 0, y: 0, zoom: 1, width: 0, height: 0 };

function make(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function packageOf(node) {
  // Topics and services belong to no package; everything else to the first two parts of its name.
  const parts = node.name.split(".");
  return !(node.kind in COLUMN) || parts.length < 2 ? null : parts.slice(0, Math.min(2, parts.length - 1)).join(".");
}

function columnOf(node, isSource) {
  if (node.kind in COLUMN) return COLUMN[node.kind];
  return node.kind === "topic" ? (isSource ? 0 : COLUMNS - 1) : isSource ? COLUMN.sender : COLUMN.receiver;
}

function fit(text, width) {
  const most = Math.floor((width - 24) / CHARACTER);
  if (text.length <= most) return text;
  // The end of a name or a path says more than its start; a sentence is read from its start.
  return text.includes(" ") ? `${text.slice(0, most - 1)}…` : `…${text.slice(text.length - most + 1)}`;
}

// -- what is shown: packages that are folded stand for their nodes ------------------------------------------------

function collect() {
  // Services that receive, and the topics that they receive.
  const sources = new Set(edges.filter(([, end]) => nodes[end].kind === "signal").map(([start]) => start));
  for (const [start, end] of edges) if (nodes[start].kind === "topic" && sources.has(end)) sources.add(start);
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = new Set([...nodes.keys()].filter((number) => words.every((word) => `${nodes[number].name} ${nodes[number].note}`.toLowerCase().includes(word))));
  const near = new Set(hits);
  if (words.length) for (const [start, end] of edges) if (hits.has(start) || hits.has(end)) near.add(start).add(end);
  const shown = new Map();
  const keyOf = new Map();
  for (const [number, node] of nodes.entries()) {
    if (words.length && !near.has(number)) continue;
    const name = packageOf(node);
    const column = columnOf(node, sources.has(number));
    const isFolded = name !== null && state.folded.has(name) && !words.length;
    const key = isFolded ? `${column}:${name}` : `#${number}`;
    keyOf.set(number, key);
    const known = shown.get(key);
    if (known) known.count += 1;
    else shown.set(key, { key, node, number, column, name, isFolded, count: 1, hit: !words.length || hits.has(number) });
  }
  const joined = new Map();
  for (const [start, end, label] of edges) {
    const [from, to] = [keyOf.get(start), keyOf.get(end)];
    if (from === undefined || to === undefined) continue;
    const key = `${from}>${to}`;
    const known = joined.get(key);
    if (!known) joined.set(key, { from, to, labels: [label], count: 1 });
    else {
      known.count += 1;
      if (!known.labels.includes(label)) known.labels.push(label);
    }
  }
  return [shown, [...joined.values()], hits.size];
}

function columnsOf(shown, lines) {
  const columns = [...Array(COLUMNS).keys()].map((column) => [...shown.values()].filter((each) => each.column === column));
  const place = new Map();
  const number = () => columns.forEach((column) => column.forEach((each, row) => place.set(each.key, row)));
  const others = new Map();
  for (const { from, to } of lines) {
    others.set(from, [...(others.get(from) ?? []), to]);
    others.set(to, [...(others.get(to) ?? []), from]);
  }
  number();
  // Each column is sorted by the middle of what its nodes are connected with, a few times over.
  for (let round = 0; round < 4; round += 1) {
    for (const index of [1, 3, 0, 4]) {
      const middle = new Map(columns[index].map((each) => {
        const rows = (others.get(each.key) ?? []).map((key) => place.get(key));
        return [each.key, rows.length ? rows.reduce((sum, row) => sum + row, 0) / rows.length : place.get(each.key)];
      }));
      columns[index].sort((a, b) => middle.get(a.key) - middle.get(b.key));
      number();
    }
  }
  return columns.filter((column) => column.length);
}

function textsOf(each) {
  if (each.isFolded) return [each.name, `${each.count} ${each.node.kind}${each.count === 1 ? "" : "s"}, click to unfold`];
  const { node } = each;
  const words = [node.orphan ? "nobody hears this" : "", node.loaded ? "" : "not loaded", node.note].filter(Boolean);
  return [node.name, [...new Set(words)].join(" · ")];
}

function draw() {
  const [shown, lines, hits] = collect();
  const columns = columnsOf(shown, lines);
  const tallest = Math.max(0, ...columns.map((column) => column.length));
  const boxes = new Map();
  const back = make("g", {});
  const front = make("g", {});
  const labels = make("g", {});
  let left = MARGIN;
  columns.forEach((column, index) => {
    const longest = Math.max(...column.flatMap((each) => textsOf(each).map((text) => text.length)));
    const width = Math.min(Math.max(NARROW, longest * CHARACTER + 28), WIDE);
    front.append(make("text", { class: "title", x: left, y: 34 }, Object.keys(TITLES).filter((kind) => column.some((each) => each.node.kind === kind)).map((kind) => TITLES[kind]).join(" AND ")));
    const offset = TOP + ((tallest - column.length) * ROW) / 2;
    column.forEach((each, row) => {
      boxes.set(each.key, { each, x: left, y: offset + row * ROW, width, column: index });
    });
    // Labels stand in the space between the columns, which is as wide as the longest.
    const keys = new Set(column.map((each) => each.key));
    const label = Math.max(0, ...lines.filter((line) => keys.has(line.from)).map((line) => labelOf(line).length));
    left += width + GAP + Math.max(60, label * LABEL);
  });
  state.width = Math.max(...[...boxes.values()].map((box) => box.x + box.width), 200) + MARGIN;
  state.height = TOP + tallest * ROW + MARGIN;
  const taken = [];
  for (const line of lines) drawLine(line, boxes, back, labels, taken);
  for (const box of boxes.values()) front.append(drawBox(box));
  const world = make("g", { id: "world" }, back, labels, front);
  picture.replaceChildren(world);
  picture.setAttribute("aria-label", `${shown.size} boxes, ${lines.length} lines`);
  document.getElementById("found").textContent = state.search ? `${hits} found` : "";
  mark();
  move();
}

function labelOf(line) {
  const text = line.labels.filter(Boolean).join("; ");
  const counted = line.count > 1 && line.labels.length < line.count ? `${line.count}×` : "";
  const whole = [counted, text].filter(Boolean).join(" ");
  return whole.length > 34 ? `${whole.slice(0, 33)}…` : whole;
}

function drawLine(line, boxes, back, labels, taken) {
  const [a, b] = [boxes.get(line.from), boxes.get(line.to)];
  const [x1, y1, x2, y2] = [a.x + a.width, a.y + BOX / 2, b.x, b.y + BOX / 2];
  const bend = (x2 - x1) / 2;
  const path = make("path", { d: `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}` });
  path.dataset.from = line.from;
  path.dataset.to = line.to;
  path.append(make("title", {}, `${textsOf(a.each)[0]} → ${textsOf(b.each)[0]} ${line.labels.filter(Boolean).join("; ")}`));
  back.append(path);
  const text = labelOf(line);
  if (!text) return;
  const width = text.length * LABEL + 8;
  const x = x2 - 8 - width;
  let y = y2 - 8;
  // One below the other where several end at one box.
  while (taken.some((other) => Math.abs(other.y - y) < 15 && other.x < x + width && x < other.x + other.width)) y += 15;
  taken.push({ x, y, width });
  const group = make("g", { class: "label" }, make("rect", { x, y: y - 8, width, height: 15, rx: 4 }), make("text", { class: "soft", x: x + 4, y: y + 3 }, text));
  group.dataset.from = line.from;
  group.dataset.to = line.to;
  labels.append(group);
}

function drawBox(box) {
  const { each, x, y, width } = box;
  const [name, note] = textsOf(each);
  const kinds = each.isFolded ? "package" : `node ${each.node.kind}${each.node.orphan ? " orphan" : ""}${each.node.loaded ? "" : " missing"}`;
  const radius = !each.isFolded && each.node.kind === "signal" ? 22 : 8;
  const group = make("g", { class: kinds, tabindex: 0, role: "button" },
    make("title", {}, `${name}\n${note}`),
    make("rect", { x, y, width, height: BOX, rx: radius }),
    make("text", { x: x + 14, y: y + 19 }, fit(name, width)),
    make("text", { class: "soft", x: x + 14, y: y + 35 }, fit(note, width)));
  group.dataset.key = each.key;
  const act = () => {
    if (each.isFolded) {
      state.folded.delete(each.name);
      draw();
    } else {
      state.chosen = state.chosen === each.key ? null : each.key;
      mark();
    }
  };
  group.addEventListener("click", act);
  group.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); } });
  return group;
}

function mark() {
  // What is chosen, what it is connected with, and what a search has found stand out.
  const near = new Set(state.chosen ? [state.chosen] : []);
  for (const path of picture.querySelectorAll("path")) {
    const hot = state.chosen !== null && (path.dataset.from === state.chosen || path.dataset.to === state.chosen);
    path.classList.toggle("hot", hot);
    path.classList.toggle("faded", state.chosen !== null && !hot);
    if (hot) near.add(path.dataset.from).add(path.dataset.to);
  }
  for (const box of picture.querySelectorAll("[data-key]")) {
    box.classList.toggle("faded", state.chosen !== null && !near.has(box.dataset.key));
    box.classList.toggle("chosen", box.dataset.key === state.chosen);
  }
  for (const label of picture.querySelectorAll(".label")) {
    label.classList.toggle("faded", state.chosen !== null && label.dataset.from !== state.chosen && label.dataset.to !== state.chosen);
  }
}

// -- moving and enlarging -----------------------------------------------------------------------------------------

function move() {
  document.getElementById("world").setAttribute("transform", `translate(${state.x} ${state.y}) scale(${state.zoom})`);
}

function fitAll() {
  const { width, height } = picture.getBoundingClientRect();
  state.zoom = Math.min(1, Math.max(0.05, Math.min(width / state.width, height / state.height)));
  state.x = Math.max(0, (width - state.width * state.zoom) / 2);
  state.y = 0;
  move();
}

function zoomBy(factor, x, y) {
  const zoom = Math.min(4, Math.max(0.05, state.zoom * factor));
  state.x = x - ((x - state.x) / state.zoom) * zoom;
  state.y = y - ((y - state.y) / state.zoom) * zoom;
  state.zoom = zoom;
  move();
}

if (picture) {
  for (const node of nodes) if (packageOf(node) !== null) packages.add(packageOf(node));
  if (folded) for (const name of packages) state.folded.add(name);
  const middle = () => { const box = picture.getBoundingClientRect(); return [box.width / 2, box.height / 2]; };
  document.getElementById("larger").addEventListener("click", () => zoomBy(1.3, ...middle()));
  document.getElementById("smaller").addEventListener("click", () => zoomBy(1 / 1.3, ...middle()));
  document.getElementById("fit").addEventListener("click", fitAll);
  document.getElementById("fold").addEventListener("click", () => {
    const all = state.folded.size === packages.size;
    state.folded.clear();
    if (!all) for (const name of packages) state.folded.add(name);
    draw();
    fitAll();
  });
  document.getElementById("search").addEventListener("input", (event) => {
    state.search = event.target.value.trim();
    state.chosen = null;
    draw();
    fitAll();
  });
  picture.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = picture.getBoundingClientRect();
    zoomBy(event.deltaY < 0 ? 1.1 : 1 / 1.1, event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  let drag = null;
  picture.addEventListener("pointerdown", (event) => { drag = [event.clientX - state.x, event.clientY - state.y]; });
  addEventListener("pointermove", (event) => {
    if (!drag) return;
    state.x = event.clientX - drag[0];
    state.y = event.clientY - drag[1];
    move();
  });
  addEventListener("pointerup", () => { drag = null; });
  addEventListener("resize", fitAll);
  draw();
  fitAll();
}
