// The inspector's page. It only reads: one event stream in, text into elements out. Text goes into the page as text
// (textContent), never as markup; the page's policy makes the browser refuse anything else.

const KEPT = 500; // sends kept in this page
const SHOWN = 200; // sends drawn at once
const HISTORY = 60; // samples of a sparkline, one a second
const FEW = 30; // signals whose receivers are shown without asking
const CHUNK = 20; // cards drawn at once, between which the page answers
const RESORT = 5; // seconds between which the order of the cards stays
const COUNTED = 10; // seconds between questions who was called

const $ = (id) => document.getElementById(id);
const sends = []; // the newest last
const rows = new Map(); // number of a send -> its element
const byId = new Map(); // what a send calls itself -> the send
const follows = new Map(); // what a send calls itself -> the sends that its receivers made
const signals = new Map(); // number of a signal -> {info, samples, figures, ...}
const view = { filter: "", sort: "name", unfolded: null, chosen: null, failedOnly: false, paused: false, missed: 0, skipped: 0, cleared: 0 };
let source = null;
let run = null;
let last = 0;
let totals = null;
let listed = "";
let drawing = 0; // the run of drawing cards that is under way
let sorted = 0; // when the cards were sorted
let heard = 0; // when the last figures came
let asked = 0; // when the counts were asked for
let counts = {};

function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null && child !== ""));
  return element;
}

function link(text, href) {
  if (!href) return make("span", "", text);
  const anchor = make("a", "", text);
  anchor.href = href;
  anchor.title = "Open in the editor";
  return anchor;
}

function seconds(value) {
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${(value * 1e3).toFixed(value < 0.01 ? 2 : 1)} ms`;
  return `${value.toFixed(2)} s`;
}

function rate(value) {
  if (value >= 1000) return `${(value / 1000).toFixed(1)}k/s`;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toFixed(1)}/s`;
}

function clock(at) {
  const date = new Date(at * 1000);
  const two = (number) => String(number).padStart(2, "0");
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":");
  return `${time}.${String(date.getMilliseconds()).padStart(3, "0")}`;
}

function prose(text) {
  // `names` of code in a docstring's line stand between backticks.
  return text.split("`").map((part, index) => (index % 2 && part ? make("code", "", part) : part));
}

function splitName(name) {
  const parts = name.split(".");
  const own = parts.pop();
  return [parts.length ? `${parts.join(".")}.` : "", own];
}

// The token of the first visit stays in a cookie, and out of the address, the history and what is copied from them.
if (location.search) history.replaceState(null, "", location.pathname);

// -- the stream ---------------------------------------------------------------------------------------------------

function open() {
  if (source || document.hidden) return;
  source = new EventSource("events");
  source.addEventListener("hello", (event) => greet(JSON.parse(event.data)));
  source.addEventListener("signals", async (event) => {
    // Each stream begins with the list. Drawing it again would take the focus away from it.
    if (event.data === listed) return;
    listed = event.data;
    const list = JSON.parse(event.data);
    if (list.signals) {
      listSignals(list);
    } else {
      const answer = await fetch("signals");
      if (answer.ok) listSignals(await answer.json());
    }
  });
  source.addEventListener("sends", (event) => receive(JSON.parse(event.data)));
  source.addEventListener("statistics", (event) => measure(JSON.parse(event.data)));
  source.onerror = () => {
    // A refusal closes the stream for good; a stream that has ended is opened again by the browser.
    if (source && source.readyState === EventSource.CLOSED) {
      close();
      setTimeout(open, 3000);
    }
    // A stream ends and comes back every few seconds by design: only say so when it stays away.
    setTimeout(showState, 3500);
  };
}

function close() {
  if (source) source.close();
  source = null;
}

function greet(hello) {
  if (run !== null && run !== hello.run) forget(); // the program was restarted
  run = hello.run;
  showState();
}

function forget() {
  sends.length = 0;
  rows.clear();
  byId.clear();
  follows.clear();
  signals.clear();
  counts = {};
  $("signals").replaceChildren();
  listed = "";
  last = 0;
  totals = null;
  view.cleared = 0;
  choose(null);
}

function showState() {
  const state = $("state");
  const open = source && (source.readyState === EventSource.OPEN || performance.now() - heard < 3000);
  const text = view.paused ? "paused" : open ? "live" : "reconnecting";
  state.dataset.state = text;
  state.textContent = view.paused && view.missed ? `paused, ${view.missed} new` : text;
}

// -- signals ------------------------------------------------------------------------------------------------------

function listSignals({ signals: list, more }) {
  const known = new Set(list.map((info) => info.number));
  for (const [number, entry] of signals) {
    if (!known.has(number)) {
      entry.element?.remove();
      signals.delete(number);
    }
  }
  const changed = [];
  for (const info of list) {
    const text = JSON.stringify(info);
    const entry = signals.get(info.number) ?? { samples: [], sends: 0, at: 0, figures: null, reach: null, unfolded: null };
    if (entry.listed !== text) changed.push(entry);
    entry.listed = text;
    entry.info = info;
    entry.text = [info.name, info.doc, ...info.receivers.map((each) => each.name)].join("\n").toLowerCase();
    signals.set(info.number, entry);
  }
  $("signal-count").textContent = list.length ? `(${(list.length + more).toLocaleString("en")})` : "";
  $("more-signals").textContent = `And ${more.toLocaleString("en")} more that were not sent since this page watches.`;
  $("more-signals").hidden = !more;
  drawSignals(changed);
}

function drawSignals(changed) {
  // A few at a time, so that the page answers in between; those of a later list replace what is left of this one.
  drawing += 1;
  const run = drawing;
  const waiting = new Set([...changed, ...[...signals.values()].filter((entry) => !entry.element)]);
  const todo = inOrder([...waiting]);
  const step = () => {
    if (run !== drawing) return;
    for (const entry of todo.splice(0, CHUNK)) {
      const element = drawSignal(entry);
      if (entry.element) entry.element.replaceWith(element);
      else $("signals").append(element);
      entry.element = element;
      if (entry.figures) drawFigures(entry);
      sift(entry);
    }
    if (todo.length) {
      setTimeout(step);
      return;
    }
    // When there are many now, those that were unfolded while there were few are folded.
    for (const entry of signals.values()) if (entry.list && entry.list.hidden === isUnfolded(entry)) drawReceivers(entry);
    arrange();
  };
  step();
}

function inOrder(entries) {
  const figure = (entry, index) => (entry.figures ? entry.figures[index] : 0);
  const unheard = (entry) => (entry.reach ? entry.reach[0] : 0) + (entry.info.orphan ? 0.5 : 0);
  const keys = {
    name: (entry) => -Number(entry.info.orphan),
    busiest: (entry) => figure(entry, 0),
    slowest: (entry) => figure(entry, 3),
    failing: (entry) => figure(entry, 1),
    unheard,
  };
  const key = keys[view.sort];
  return entries.sort((a, b) => key(b) - key(a) || a.info.name.localeCompare(b.info.name));
}

function arrange() {
  // Only what is out of place is moved: moving takes the focus away.
  let place = $("signals").firstElementChild;
  for (const entry of inOrder([...signals.values()])) {
    if (!entry.element) continue;
    if (entry.element === place) place = place.nextElementSibling;
    else $("signals").insertBefore(entry.element, place);
  }
  sorted = performance.now() / 1000;
  markChosen();
}

function sift(entry) {
  entry.element.hidden = !view.filter.split(/\s+/).every((word) => entry.text.includes(word)) && !entry.hits;
}

function siftSignals() {
  // A signal stays for what the filter finds in its sends, too.
  const hit = new Set(view.filter ? sends.filter(matches).map((send) => send.signal) : []);
  for (const [number, entry] of signals) {
    entry.hits = hit.has(number);
    if (entry.element) sift(entry);
  }
}

function drawSignal(entry) {
  const { info } = entry;
  const [module, own] = splitName(info.name);
  const name = make("span", "signal-name", make("span", "module", module), own);
  if (info.orphan) name.append(make("span", "orphan", "nobody hears"));
  entry.line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const spark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  spark.setAttribute("class", "spark");
  spark.setAttribute("viewBox", `0 0 ${HISTORY} 20`);
  spark.setAttribute("preserveAspectRatio", "none");
  spark.setAttribute("role", "img");
  entry.spark = spark;
  spark.append(entry.line);
  entry.figuresElement = make("span", "figures");
  entry.drawn = "";
  const head = make("button", "signal-head", name, make("span", "signature", info.signature), info.doc ? make("span", "doc", ...prose(info.doc)) : null, entry.figuresElement, spark);
  head.type = "button";
  head.title = "Show only the sends of this signal";
  head.addEventListener("click", () => choose(view.chosen === info.number ? null : info.number));
  const element = make("article", "signal", head);
  element.dataset.signal = info.name;
  if (info.receivers.length) {
    const fold = make("button", "fold");
    fold.type = "button";
    fold.addEventListener("click", () => {
      entry.unfolded = !isUnfolded(entry);
      drawReceivers(entry);
    });
    entry.fold = fold;
    entry.list = make("ol", "receivers");
    element.append(fold, entry.list);
    drawReceivers(entry);
  }
  return element;
}

function isUnfolded(entry) {
  return entry.unfolded ?? view.unfolded ?? signals.size <= FEW;
}

function drawReceivers(entry) {
  if (!entry.list) return;
  const open = isUnfolded(entry);
  const count = entry.info.receivers.length;
  entry.fold.textContent = `${open ? "▾" : "▸"} ${count} receiver${count === 1 ? "" : "s"}${entry.reach ? `, ${called(entry)} called` : ""}`;
  entry.fold.setAttribute("aria-expanded", String(open));
  entry.list.hidden = !open;
  if (open && !entry.list.childElementCount) entry.list.append(...entry.info.receivers.map(drawReceiver));
  if (open) {
    askWhoWasCalled();
    markCalled(entry);
  }
}

function called(entry) {
  // Receivers that one function has made go by one name: when all names were called, all receivers were.
  const names = new Set(entry.info.receivers.map((receiver) => receiver.key)).size;
  return entry.reach[1] >= names ? entry.info.receivers.length : entry.reach[1];
}

function drawReceiver(receiver) {
  const tags = receiver.notes.map((note) => make("span", "tag", note));
  const place = receiver.place ? [link(receiver.place, receiver.link), make("br")] : [];
  return make("li", "", make("span", "receiver-name", receiver.name), make("span", "where", ...place, make("span", "calls"), ...tags));
}

async function askWhoWasCalled() {
  const now = performance.now() / 1000;
  if (now - asked < COUNTED) return;
  asked = now;
  const answer = await fetch("counts");
  if (!answer.ok) return;
  counts = await answer.json();
  for (const entry of signals.values()) if (entry.list && isUnfolded(entry)) markCalled(entry);
}

function markCalled(entry) {
  const calls = counts[entry.info.name]?.calls ?? {};
  const watched = entry.figures !== null;
  entry.info.receivers.forEach((receiver, index) => {
    const label = entry.list.children[index]?.querySelector(".calls");
    if (!label) return;
    const count = calls[receiver.key] ?? 0;
    const text = count ? `called ${count.toLocaleString("en")}×` : watched ? "never called" : "";
    if (label.textContent !== text) label.textContent = text;
    label.classList.toggle("never", !count);
  });
}

function measure(statistics) {
  heard = performance.now();
  showState();
  const now = heard / 1000;
  for (const [number, figures] of Object.entries(statistics.signals)) {
    const entry = signals.get(Number(number));
    if (!entry) continue;
    entry.figures = figures;
    entry.reach = statistics.reach[number];
  }
  let sent = 0;
  let failed = 0;
  const medians = [];
  for (const entry of signals.values()) {
    const count = entry.figures ? entry.figures[0] : 0;
    if (entry.figures) {
      sent += count;
      failed += entry.figures[1];
      medians.push([entry.figures[2], count]);
    }
    if (entry.at) entry.samples.push(Math.max(0, count - entry.sends) / Math.max(0.2, now - entry.at));
    if (entry.samples.length > HISTORY) entry.samples.shift();
    entry.sends = count;
    entry.at = now;
    if (entry.figures && entry.element) drawFigures(entry);
  }
  showTotals(sent, failed, medians, now);
  if (statistics.skipped > view.skipped) {
    const count = (statistics.skipped).toLocaleString("en");
    $("notice").textContent = `Too fast to show all: ${count} sends were counted and timed only.`;
    $("notice").hidden = false;
  }
  view.skipped = statistics.skipped;
  if (view.sort !== "name" && now - sorted > RESORT) arrange();
  if ([...signals.values()].some((entry) => entry.list && !entry.list.hidden)) askWhoWasCalled();
}

function drawFigures(entry) {
  const [count, errors, p50, p95, p99] = entry.figures;
  const [unheard, called] = entry.reach;
  const recent = entry.samples.slice(-5);
  const perSecond = recent.length ? recent.reduce((sum, each) => sum + each, 0) / recent.length : 0;
  const state = JSON.stringify([entry.figures, entry.reach, rate(perSecond)]);
  if (state !== entry.drawn) {
    const figure = (label, value, className = "") => make("span", className, make("b", "", value), ` ${label}`);
    entry.figuresElement.replaceChildren(
      figure("", rate(perSecond)), figure("sends", count.toLocaleString("en")), figure("p50", seconds(p50)), figure("p95", seconds(p95)), figure("p99", seconds(p99)),
      ...(errors ? [figure("failed", errors.toLocaleString("en"), "failing")] : []),
      ...(unheard ? [figure("reached nobody", unheard.toLocaleString("en"), "unheard")] : []),
    );
    if (entry.fold && entry.shownCalled !== called) drawReceivers(entry);
    entry.shownCalled = called;
    entry.drawn = state;
  }
  // A bar for each second: one send is a bar that can be seen, and nothing is joined that was apart.
  const most = Math.max(1, ...entry.samples);
  const offset = HISTORY - entry.samples.length;
  const bars = entry.samples.map((sample, index) => (sample ? `M${offset + index + 0.5} 20V${(20 - Math.max(3, (sample / most) * 20)).toFixed(1)}` : ""));
  const line = bars.join("");
  if (line !== entry.lineDrawn) {
    entry.line.setAttribute("d", line);
    entry.spark.setAttribute("aria-label", `sends a second in the last minute, at most ${rate(most)}`);
  }
  entry.lineDrawn = line;
}

function showTotals(sent, failed, medians, now) {
  if (totals) $("total-rate").textContent = rate(Math.max(0, sent - totals.sent) / Math.max(0.2, now - totals.at));
  totals = { sent, at: now };
  const weight = medians.reduce((sum, [, count]) => sum + count, 0);
  medians.sort((a, b) => a[0] - b[0]);
  let seen = 0;
  const median = medians.find(([, count]) => (seen += count) * 2 >= weight);
  $("total-median").textContent = median ? seconds(median[0]) : "–";
  $("total-errors").textContent = failed.toLocaleString("en");
  $("total-errors").parentElement.classList.toggle("failing", failed > 0);
}

function choose(number) {
  view.chosen = number;
  const entry = signals.get(number);
  const bar = $("chosen");
  bar.hidden = !entry;
  if (entry) {
    const all = make("button", "", "Show all");
    all.type = "button";
    all.addEventListener("click", () => choose(null));
    bar.replaceChildren(make("span", "", "Only ", make("strong", "", entry.info.name)), all);
    document.body.dataset.view = "sends";
    markViews();
  }
  markChosen();
  redraw();
}

function markChosen() {
  for (const [number, entry] of signals) {
    if (!entry.element) continue;
    entry.element.classList.toggle("chosen-signal", number === view.chosen);
    entry.element.firstElementChild.setAttribute("aria-pressed", String(number === view.chosen));
  }
}

// -- sends --------------------------------------------------------------------------------------------------------

function receive(list) {
  const fresh = list.filter((send) => send.number > last);
  if (!fresh.length) return;
  last = fresh[fresh.length - 1].number;
  for (const send of fresh) {
    send.text = searchText(send);
    byId.set(send.id, send);
    if (send.parent !== null) follows.set(send.parent, [...(follows.get(send.parent) ?? []), send]);
  }
  sends.push(...fresh);
  if (sends.length > KEPT) for (const send of sends.splice(0, sends.length - KEPT)) lose(send);
  if (view.paused) {
    view.missed += fresh.filter(matches).length;
    showState();
  } else {
    draw(fresh.filter(matches), true);
  }
}

function lose(send) {
  byId.delete(send.id);
  follows.delete(send.id);
}

function hasFailed(send) {
  return Boolean(send.error) || send.receivers.some((receiver) => receiver.error);
}

function searchText(send) {
  const parts = [send.name, send.sender, send.event ?? ""];
  for (const [name, value] of send.arguments) parts.push(`${name}=${value}`);
  for (const receiver of send.receivers) parts.push(receiver.name, receiver.error ? `${receiver.error.type} ${receiver.error.message}` : "");
  if (send.error) parts.push(send.error.type, send.error.message);
  return parts.join("\n").toLowerCase();
}

function matches(send) {
  if (send.number <= view.cleared) return false;
  if (view.chosen !== null && send.signal !== view.chosen) return false;
  if (view.failedOnly && !hasFailed(send)) return false;
  return view.filter.split(/\s+/).every((word) => send.text.includes(word));
}

function draw(list, fresh) {
  for (const send of list.slice(-SHOWN)) {
    const row = drawSend(send);
    if (fresh) row.classList.add("fresh");
    rows.set(send.number, row);
    put(send, make("div", "thread", row, make("div", "follows")));
    for (const child of follows.get(send.id) ?? []) {
      if (rows.has(child.number)) put(child, rows.get(child.number).parentElement);
    }
    refreshWhole(send);
  }
  const box = $("sends");
  while (rows.size > SHOWN && box.childElementCount > 1) {
    for (const row of box.lastElementChild.querySelectorAll(".send")) rows.delete(Number(row.dataset.number));
    box.lastElementChild.remove();
  }
  $("empty").hidden = box.childElementCount > 0;
  $("empty").firstElementChild.firstElementChild.textContent = sends.length ? "Nothing here matches." : "Waiting for the first send.";
}

function put(send, thread) {
  // Under the send whose receiver made it, in the order of time; the others stand for themselves, the newest first.
  const parent = send.parent === null ? undefined : byId.get(send.parent);
  const row = parent && rows.get(parent.number);
  if (!row) {
    $("sends").prepend(thread);
    return;
  }
  const box = row.nextElementSibling;
  thread.dataset.at = send.at;
  const later = [...box.children].find((each) => Number(each.dataset.at) > send.at);
  box.insertBefore(thread, later ?? null);
}

function rootOf(send) {
  let root = send;
  for (let steps = 0; root.parent !== null && byId.has(root.parent) && steps < KEPT; steps += 1) root = byId.get(root.parent);
  return root;
}

function refreshWhole(send) {
  const root = rootOf(send);
  const row = rows.get(root.number);
  const old = row?.querySelector(".whole");
  if (old) old.replaceWith(drawWhole(root));
}

function redraw() {
  const open = new Set([...rows].filter(([, row]) => row.open).map(([number]) => number));
  rows.clear();
  $("sends").replaceChildren();
  draw(sends.filter(matches), false);
  for (const number of open) if (rows.has(number)) rows.get(number).open = true;
}

function drawSend(send) {
  const failed = hasFailed(send);
  const [module, own] = splitName(send.name);
  // The module gives way first, from its start: its end says more.
  const what = make("span", "what", make("span", "name", make("span", "module", make("bdi", "", module)), make("span", "own", own)));
  what.title = send.name;
  const error = send.error ?? send.receivers.map((receiver) => receiver.error).find(Boolean);
  if (error) what.append(make("span", "badge", error.type));
  const glance = send.arguments.map(([name, value]) => `${name}=${value}`).join("  ");
  const row = make("details", failed ? "send failed" : "send", make("summary", "",
    make("span", "time", clock(send.at)), what, make("span", "glance", send.event ?? (glance || send.sender)), drawMini(send), make("span", "took", seconds(send.duration))));
  row.dataset.number = send.number;
  row.dataset.signal = send.name;
  row.addEventListener("toggle", () => {
    if (!row.open || row.childElementCount > 1) return;
    row.append(drawDetail(send));
    // A traceback says what happened in its last lines.
    for (const trace of row.querySelectorAll("pre")) trace.scrollTop = trace.scrollHeight;
  });
  return row;
}

function span(send) {
  return Math.max(send.duration, ...send.receivers.map((receiver) => receiver.start + receiver.duration), 1e-9);
}

function bar(receiver, whole) {
  const element = make("i", receiver.error ? "failed" : "");
  const left = Math.min(99, (receiver.start / whole) * 100);
  element.style.left = `${left}%`;
  element.style.width = `${Math.min(100 - left, (receiver.duration / whole) * 100)}%`;
  return element;
}

function drawMini(send) {
  const whole = span(send);
  const mini = make("span", "mini");
  const lines = send.receivers.slice(0, 6);
  lines.forEach((receiver, index) => {
    const element = bar(receiver, whole);
    const height = Math.min(30, 100 / lines.length);
    element.style.top = `${50 + (index - lines.length / 2) * height}%`;
    element.style.height = `${height}%`;
    mini.append(element);
  });
  mini.title = lines.length ? `${send.receivers.length + send.more} receivers` : "nobody heard this";
  return mini;
}

function drawDetail(send) {
  const detail = make("div", "detail", make("div", "", make("h3", "", "Sent"), drawValues(send)));
  const fall = make("div", "fall");
  const whole = span(send);
  const errors = [];
  for (const receiver of send.receivers) {
    const where = receiver.place ? make("small", "", link(receiver.place, receiver.link)) : null;
    fall.append(make("div", "who", receiver.name, where), make("div", "track", bar(receiver, whole)), make("div", "took", seconds(receiver.duration)));
    if (receiver.error) errors.push(drawError(receiver.error, receiver.name));
  }
  const title = send.partial ? "Receivers that failed" : send.more ? `Receivers (and ${send.more} more)` : "Receivers";
  detail.append(drawWhole(send));
  detail.append(make("div", "", make("h3", "", title), send.receivers.length ? fall : make("p", "", "Nobody heard this."), ...errors));
  if (send.error && !errors.length) detail.append(drawError(send.error, ""));
  return detail;
}

function drawWhole(send) {
  const box = make("div", "whole");
  const tree = [];
  const walk = (each, depth) => {
    tree.push([each, depth]);
    if (tree.length < SHOWN) for (const child of [...(follows.get(each.id) ?? [])].sort((a, b) => a.at - b.at)) walk(child, depth + 1);
  };
  walk(send, 0);
  box.hidden = tree.length < 2;
  if (box.hidden) return box;
  const end = Math.max(...tree.map(([each]) => each.at + span(each)));
  const whole = Math.max(1e-9, end - send.at);
  const lines = make("div", "fall");
  for (const [each, depth] of tree) {
    const who = make("div", "who", each.name, each.event ? make("small", "", each.event) : null);
    who.style.paddingLeft = `${Math.min(depth, 12) * 16}px`;
    const part = bar({ start: Math.max(0, each.at - send.at), duration: each.duration, error: hasFailed(each) }, whole);
    lines.append(who, make("div", "track", part), make("div", "took", seconds(each.duration)));
  }
  box.append(make("h3", "", `What followed, ${seconds(whole)} in all`), lines);
  return box;
}

function drawValues(send) {
  const values = make("dl", "values", make("dt", "", "signal"), make("dd", "", send.name), make("dt", "", "sender"), make("dd", "", send.sender));
  if (send.event) values.append(make("dt", "", "by"), make("dd", "", send.event));
  for (const [name, value] of send.arguments) values.append(make("dt", "", name), make("dd", "", value));
  return values;
}

function drawError(error, where) {
  const box = make("div", "error", make("p", "", make("b", "", error.type), error.message ? `: ${error.message}` : "", where ? ` in ${where}` : ""));
  if (error.traceback) box.append(make("pre", "", error.traceback));
  return box;
}

// -- tools --------------------------------------------------------------------------------------------------------

function toggle(button, on) {
  button.setAttribute("aria-pressed", String(on));
}

function markViews() {
  for (const button of document.querySelectorAll("[data-show]")) toggle(button, button.dataset.show === document.body.dataset.view);
}

let typing = 0;
$("filter").addEventListener("input", (event) => {
  view.filter = event.target.value.trim().toLowerCase();
  clearTimeout(typing);
  typing = setTimeout(() => {
    redraw();
    siftSignals();
  }, 60);
});
$("sort").addEventListener("change", (event) => {
  view.sort = event.target.value;
  arrange();
});
$("fold").addEventListener("click", (event) => {
  view.unfolded = !(view.unfolded ?? signals.size <= FEW);
  toggle(event.currentTarget, view.unfolded);
  const todo = [...signals.values()];
  drawing += 1;
  const run = drawing;
  const step = () => {
    if (run !== drawing) return;
    for (const entry of todo.splice(0, CHUNK)) {
      entry.unfolded = null;
      drawReceivers(entry);
    }
    if (todo.length) setTimeout(step);
  };
  step();
});
$("errors").addEventListener("click", (event) => {
  view.failedOnly = !view.failedOnly;
  toggle(event.currentTarget, view.failedOnly);
  redraw();
});
$("pause").addEventListener("click", (event) => {
  view.paused = !view.paused;
  view.missed = 0;
  toggle(event.currentTarget, view.paused);
  event.currentTarget.textContent = view.paused ? "Resume" : "Pause";
  if (!view.paused) redraw();
  showState();
});
$("clear").addEventListener("click", () => {
  view.cleared = last;
  view.missed = 0;
  $("notice").hidden = true;
  redraw();
  showState();
});
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    document.body.dataset.view = button.dataset.show;
    markViews();
  });
}
document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
addEventListener("pagehide", close);
addEventListener("pageshow", open);
open();
