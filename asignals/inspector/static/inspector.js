// The inspector's page. It only reads: one event stream in, text into elements out. Text goes into the page as text
// (textContent), never as markup; the page's policy makes the browser refuse anything else.

const KEPT = 500; // sends kept in this page
const SHOWN = 200; // sends drawn at once
const HISTORY = 60; // samples of a sparkline, one a second

const $ = (id) => document.getElementById(id);
const sends = []; // the newest last
const rows = new Map(); // number of a send -> its element
const signals = new Map(); // number of a signal -> {info, samples, figures, ...}
const view = { filter: "", chosen: null, failedOnly: false, paused: false, missed: 0, skipped: 0, cleared: 0 };
let source = null;
let run = null;
let last = 0;
let totals = null;
let listed = "";

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
    setTimeout(() => { if (!source || source.readyState !== EventSource.OPEN) showState(); }, 1500);
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
  signals.clear();
  $("signals").replaceChildren();
  listed = "";
  last = 0;
  totals = null;
  view.cleared = 0;
  choose(null);
}

function showState() {
  const state = $("state");
  const open = source && source.readyState === EventSource.OPEN;
  const text = view.paused ? "paused" : open ? "live" : "reconnecting";
  state.dataset.state = text;
  state.textContent = view.paused && view.missed ? `paused, ${view.missed} new` : text;
}

// -- signals ------------------------------------------------------------------------------------------------------

function listSignals({ signals: list, more }) {
  const known = new Set(list.map((info) => info.number));
  for (const [number, each] of signals) {
    if (!known.has(number)) {
      each.element.remove();
      signals.delete(number);
    }
  }
  list.sort((a, b) => Number(a.orphan) - Number(b.orphan) || a.name.localeCompare(b.name));
  for (const info of list) {
    const old = signals.get(info.number);
    const entry = old ?? { samples: [], sends: 0, at: 0 };
    entry.info = info;
    const element = drawSignal(entry);
    if (old) old.element.replaceWith(element);
    entry.element = element;
    signals.set(info.number, entry);
    $("signals").append(element); // in the order of the list
    if (entry.figures) drawFigures(entry);
  }
  $("signal-count").textContent = list.length ? `(${(list.length + more).toLocaleString("en")})` : "";
  $("more-signals").textContent = `And ${more.toLocaleString("en")} more that were not sent since this page watches.`;
  $("more-signals").hidden = !more;
  markChosen();
}

function drawSignal(entry) {
  const { info } = entry;
  const [module, own] = splitName(info.name);
  const name = make("span", "signal-name", make("span", "module", module), own);
  if (info.orphan) name.append(make("span", "orphan", "nobody hears"));
  entry.line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  const spark = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  spark.setAttribute("class", "spark");
  spark.setAttribute("viewBox", `0 0 ${HISTORY - 1} 20`);
  spark.setAttribute("preserveAspectRatio", "none");
  spark.setAttribute("aria-hidden", "true");
  spark.append(entry.line);
  entry.figuresElement = make("span", "figures");
  const head = make("button", "signal-head", name, make("span", "signature", info.signature), info.doc ? make("span", "doc", ...prose(info.doc)) : null, entry.figuresElement, spark);
  head.type = "button";
  head.title = "Show only the sends of this signal";
  head.addEventListener("click", () => choose(view.chosen === info.number ? null : info.number));
  const element = make("article", "signal", head);
  element.dataset.signal = info.name;
  if (info.receivers.length) element.append(make("ol", "receivers", ...info.receivers.map(drawReceiver)));
  return element;
}

function drawReceiver(receiver) {
  const tags = receiver.notes.map((note) => make("span", "tag", note));
  return make("li", "", make("span", "receiver-name", receiver.name), make("span", "where", link(receiver.place, receiver.link), make("br"), ...tags));
}

function measure(statistics) {
  const now = performance.now() / 1000;
  let sent = 0;
  let failed = 0;
  const medians = [];
  for (const [number, figures] of Object.entries(statistics.signals)) {
    sent += figures[0];
    failed += figures[1];
    medians.push([figures[2], figures[0]]);
    const entry = signals.get(Number(number));
    if (entry) entry.figures = figures;
  }
  for (const entry of signals.values()) {
    const count = entry.figures ? entry.figures[0] : 0;
    if (entry.at) entry.samples.push(Math.max(0, count - entry.sends) / Math.max(0.2, now - entry.at));
    if (entry.samples.length > HISTORY) entry.samples.shift();
    entry.sends = count;
    entry.at = now;
    if (entry.figures) drawFigures(entry);
  }
  showTotals(sent, failed, medians, now);
  if (statistics.skipped > view.skipped) {
    const count = (statistics.skipped).toLocaleString("en");
    $("notice").textContent = `Too fast to show all: ${count} sends were counted and timed only.`;
    $("notice").hidden = false;
  }
  view.skipped = statistics.skipped;
}

function drawFigures(entry) {
  const [count, errors, p50, p95, p99] = entry.figures;
  const figure = (label, value, className = "") => make("span", className, make("b", "", value), ` ${label}`);
  const recent = entry.samples.slice(-5);
  const perSecond = recent.length ? recent.reduce((sum, each) => sum + each, 0) / recent.length : 0;
  entry.figuresElement.replaceChildren(
    figure("", rate(perSecond)), figure("sends", count.toLocaleString("en")), figure("p50", seconds(p50)), figure("p95", seconds(p95)), figure("p99", seconds(p99)),
    ...(errors ? [figure("failed", errors.toLocaleString("en"), "failing")] : []),
  );
  const most = Math.max(1, ...entry.samples);
  const offset = HISTORY - entry.samples.length;
  const points = entry.samples.map((sample, index) => `${offset + index} ${(19 - (sample / most) * 17).toFixed(1)}`);
  entry.line.setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
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
    entry.element.classList.toggle("chosen-signal", number === view.chosen);
    entry.element.firstElementChild.setAttribute("aria-pressed", String(number === view.chosen));
  }
}

// -- sends --------------------------------------------------------------------------------------------------------

function receive(list) {
  const fresh = list.filter((send) => send.number > last);
  if (!fresh.length) return;
  last = fresh[fresh.length - 1].number;
  for (const send of fresh) send.text = searchText(send);
  sends.push(...fresh);
  if (sends.length > KEPT) sends.splice(0, sends.length - KEPT);
  if (view.paused) {
    view.missed += fresh.filter(matches).length;
    showState();
  } else {
    draw(fresh.filter(matches), true);
  }
}

function hasFailed(send) {
  return Boolean(send.error) || send.receivers.some((receiver) => receiver.error);
}

function searchText(send) {
  const parts = [send.name, send.sender];
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
  const box = $("sends");
  for (const send of list.slice(-SHOWN)) {
    const row = drawSend(send);
    if (fresh) row.classList.add("fresh");
    rows.set(send.number, row);
    box.prepend(row);
  }
  while (box.childElementCount > SHOWN) {
    rows.delete(Number(box.lastElementChild.dataset.number));
    box.lastElementChild.remove();
  }
  $("empty").hidden = box.childElementCount > 0;
  $("empty").firstElementChild.firstElementChild.textContent = sends.length ? "Nothing here matches." : "Waiting for the first send.";
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
  const what = make("span", "what", make("span", "own", splitName(send.name)[1]));
  what.title = send.name;
  const error = send.error ?? send.receivers.map((receiver) => receiver.error).find(Boolean);
  if (error) what.append(make("span", "badge", error.type));
  const glance = send.arguments.map(([name, value]) => `${name}=${value}`).join("  ");
  const row = make("details", failed ? "send failed" : "send", make("summary", "",
    make("span", "time", clock(send.at)), what, make("span", "glance", glance || send.sender), drawMini(send), make("span", "took", seconds(send.duration))));
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
  detail.append(make("div", "", make("h3", "", title), send.receivers.length ? fall : make("p", "", "Nobody heard this."), ...errors));
  if (send.error && !errors.length) detail.append(drawError(send.error, ""));
  return detail;
}

function drawValues(send) {
  const values = make("dl", "values", make("dt", "", "signal"), make("dd", "", send.name), make("dt", "", "sender"), make("dd", "", send.sender));
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

$("filter").addEventListener("input", (event) => {
  view.filter = event.target.value.trim().toLowerCase();
  redraw();
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
